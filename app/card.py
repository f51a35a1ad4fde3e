"""An evaluation as text: a card for people, and one JSON object for programs. Printed by `saescope eval`."""

import dataclasses
import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app.glossary import TERMS
from app.numbers import count, duration, number, percent
from sae_core.metrics import LEAST_EXPONENT
from sae_core.records import Evaluation, Histogram, SAEInfo

NOT_MEASURED = "not measured"
BLOCKS = "▁▂▃▄▅▆▇█"
COLUMNS = 24  # of a histogram in one line, at most
NATS = "nats a token"


def card(evaluation: Evaluation) -> str:
    """Every metric with its name and its unit, in groups."""
    corpus, metrics = evaluation.corpus, evaluation.metrics
    read = evaluation.hook_name
    if evaluation.target_hook_name != read:
        read += f", reconstructing {evaluation.target_hook_name}"
    sample = f", on a sample of {count(metrics.ce_tokens)} tokens" if metrics.ce_tokens else ""
    dense = f"of features, on more than {percent(metrics.dense_threshold)} of tokens"
    lines = [
        f"{evaluation.slug}: {evaluation.model.model_name} at {read}",
        f"on {corpus.name}: {count(corpus.n_tokens)} tokens of {count(corpus.n_documents)} documents, contexts of "
        f"{corpus.context_size}, {'with' if corpus.prepend_bos else 'without'} a start token, {evaluation.dtype}, "
        f"in {duration(evaluation.seconds)}",
        "",
        "How well it reconstructs",
        _row("fvu", metrics.fvu, "of the variance is not explained; 0 is perfect"),
        _row("explained_variance", metrics.explained_variance, "1 − FVU"),
        _row("cosine", metrics.cosine, "1 is the same direction"),
        _row("reconstruction_bias", metrics.reconstruction_bias, "1 is the right length, below 1 too short"),
        "",
        f"What the model still predicts{sample}",
        _row("ce_recovered", metrics.ce_recovered, "1 is all of it"),
        _row("ce_loss", metrics.ce_loss, NATS),
        _row("ce_loss_with_sae", metrics.ce_loss_with_sae, NATS),
        _row("ce_loss_with_zeros", metrics.ce_loss_with_zeros, NATS),
        _row("kl", metrics.kl, NATS),
        "",
        "Its features",
        _row("l0", metrics.l0, "active on a token"),
        _row("dead", percent(metrics.dead_share), "of features, active on no token"),
        _row("dense", percent(metrics.dense_share), dense),
        _row("encoder_decoder", metrics.encoder_decoder_cosine, "mean cosine, dead features left out"),
        _row("density", "", _line(evaluation.density_histogram, percent(10.0**LEAST_EXPONENT), "100% of tokens")),
    ]
    if metrics.encoder_decoder_histogram is not None:
        lines.append(_row("encoder_decoder", "", _line(metrics.encoder_decoder_histogram, "−1", "1")))
    return "\n".join(lines)


def as_json(evaluation: Evaluation) -> str:
    """The record as one JSON object on one line; null for what is not a number."""
    return json.dumps(_plain(dataclasses.asdict(evaluation)), ensure_ascii=False, allow_nan=False)


def as_json_lines(evaluations: Sequence[Evaluation]) -> str:
    """The records as JSON, one on each line."""
    return "\n".join(map(as_json, evaluations))


def table(saes: Sequence[SAEInfo], evaluations: Sequence[Evaluation]) -> str:
    """SAEs beside each other, as a Markdown table: what they are, then how sparse and how good."""
    head = ("SAE", "architecture", "layer", "d_sae", "k", "seed", "L0", "FVU", "CE recovered", "dead")
    rows = [
        (
            sae.slug,
            sae.architecture,
            str(sae.layer),
            count(sae.d_sae),
            str(sae.k),
            str(sae.config.get("seed", 0)),
            number(evaluation.metrics.l0),
            number(evaluation.metrics.fvu),
            number(ce) if (ce := evaluation.metrics.ce_recovered) is not None else NOT_MEASURED,
            percent(evaluation.metrics.dead_share),
        )
        for sae, evaluation in zip(saes, evaluations, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, tuple("-" * width for width in widths), *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _row(key: str, value: float | str | None, unit: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        value, unit = NOT_MEASURED, ""
    shown = value if isinstance(value, str) else number(value)
    return f"  {TERMS[key].name:<20}{shown:<9} {unit}".rstrip()


def _line(histogram: Histogram, left: str, right: str) -> str:
    """A histogram as a row of blocks between what its ends mean."""
    every = max(1, math.ceil(len(histogram.counts) / COLUMNS))
    counts = [sum(histogram.counts[i : i + every]) for i in range(0, len(histogram.counts), every)]
    top = max(counts, default=0) or 1
    blocks = (BLOCKS[math.ceil(n / top * (len(BLOCKS) - 1))] if n else " " for n in counts)
    return f"{left} |{''.join(blocks)}| {right}"


def _plain(value: Any) -> Any:
    """`value` as what JSON has."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
