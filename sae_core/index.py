"""Measure one SAE on one corpus and keep the evidence of every feature: a single pass of the model, then records.

1. Cut the corpus into contexts.
2. For each batch of contexts: model to the hook, encode, accumulate metrics (`evaluate.CorpusPass`), offer each
   context's peaks to the top examples, append the active entries to a file (`evidence`). Each token is read once.
3. From that file, without the model: exact histograms, samples of five activation bands and of random firings, and the
   activations of every chosen context.
4. From the weights alone: promoted and suppressed tokens, nearest features (`directions`).
5. On a sample of contexts: how well the model predicts with `sae_out` in place of its own activations (`evaluate`).

Nothing reaches the store before everything is there.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from sae_core import directions, evidence
from sae_core.collect import BestK
from sae_core.config import IndexConfig
from sae_core.disk import saving
from sae_core.evaluate import (
    CorpusPass,
    Subject,
    corpus_info,
    index_metrics,
    load_subject,
    measure_predictions,
    read_contexts,
)
from sae_core.metrics import RunningDensity
from sae_core.records import (
    N_BANDS,
    Context,
    Feature,
    Histogram,
    IndexInfo,
    IndexRecords,
    NearestFeature,
    SAEInfo,
    TokenWeight,
)
from sae_core.tokens import TokenContext, vocabulary
from sae_core.tokens_text import display_strings


def build_index(sae_info: SAEInfo, config: IndexConfig, *, scratch: Path) -> IndexRecords | None:
    """The index of an SAE on a corpus; None if it was asked to stop. `scratch` is where large temporary files go."""
    started = time.monotonic()
    subject = load_subject(sae_info, config)
    contexts = read_contexts(subject, config)
    with saving(scratch):
        code = evidence.CodeFile(scratch)
        try:
            firings = Firings(subject.sae.d_sae, n_top=config.top_examples, code=code)
            corpus_pass = CorpusPass(subject, batch_contexts=config.batch_contexts, take=firings.add)
            if not corpus_pass.run(contexts, what="indexing"):
                return None
            counts, banded, randoms = evidence.draw_samples(
                code,
                firings.maxima,
                per_band=config.band_examples,
                n_random=config.random_examples,
                seed=config.seed,
            )
            chosen = evidence.choose(
                top=firings.top,
                banded=banded,
                randoms=randoms,
                contexts=contexts,
                n_top=config.top_examples,
            )
            examples = evidence.packed_examples(code, chosen, d_sae=subject.sae.d_sae)
        finally:
            code.close()
    predictions = measure_predictions(subject, contexts, batch_contexts=config.batch_contexts)
    info = IndexInfo(
        slug=sae_info.slug,
        corpus=corpus_info(subject, config, contexts, corpus_pass),
        metrics=index_metrics(subject, corpus_pass, predictions, dense_threshold=config.dense_threshold),
        dtype=subject.dtype,
        seed=config.seed,
        seconds=time.monotonic() - started,
        created_at=datetime.now(tz=UTC),
    )
    return IndexRecords(
        info=info,
        contexts=_context_records(contexts),
        features=feature_records(subject, corpus_pass.density, firings, counts, config=config),
        examples=examples,
    )


class Firings:
    """What the pass keeps of every feature beside how often it fires: maximum, sum, best contexts, all on file."""

    def __init__(self, d_sae: int, *, n_top: int, code: evidence.CodeFile) -> None:
        self.maxima = torch.zeros(d_sae)
        self.sums = torch.zeros(d_sae, dtype=torch.float64)
        # Twice as many as are shown, since those with the same text fall out at the end.
        self.top = BestK(n_groups=d_sae, k=2 * n_top, payload_size=2)
        self._code = code

    def add(self, entries: evidence.Entries) -> None:
        """Adds the active entries of a batch of contexts."""
        self.sums.index_add_(0, entries.features, entries.values.double())
        self.maxima.scatter_reduce_(0, entries.features, entries.values, "amax")
        evidence.offer_peaks(self.top, entries, d_sae=len(self.maxima))
        self._code.append(entries)


@dataclass(frozen=True, slots=True)
class _Directions:
    promoted: list[tuple[TokenWeight, ...]]
    suppressed: list[tuple[TokenWeight, ...]]
    nearest: list[tuple[NearestFeature, ...]]
    cosines: list[float]


@torch.inference_mode()
def feature_records(
    subject: Subject, density: RunningDensity, firings: Firings, counts: evidence.FiringCounts, *, config: IndexConfig
) -> Iterator[Feature]:
    """One record per feature, in order."""
    known = _directions(subject, config)
    densities, maxima = density.densities.tolist(), firings.maxima.tolist()
    means = (firings.sums / density.counts.clamp_min(1)).tolist()
    band_shares = (counts.bands.double() / density.counts.clamp_min(1).unsqueeze(1)).tolist()
    histograms = counts.histogram.tolist()
    n_bins = evidence.HISTOGRAM_BINS
    for feature_index, n_active in enumerate(density.counts.tolist()):
        top = maxima[feature_index]
        edges = tuple(top * i / n_bins for i in range(n_bins + 1))
        yield Feature(
            feature_index=feature_index,
            density=densities[feature_index],
            n_active=n_active,
            max_activation=top,
            mean_activation=means[feature_index],
            encoder_decoder_cosine=known.cosines[feature_index],
            histogram=Histogram(edges=edges, counts=tuple(histograms[feature_index]))
            if n_active
            else Histogram(edges=(), counts=()),
            band_shares=tuple(band_shares[feature_index]) if n_active else (0.0,) * N_BANDS,
            promoted_tokens=known.promoted[feature_index],
            suppressed_tokens=known.suppressed[feature_index],
            nearest=known.nearest[feature_index],
        )


def _directions(subject: Subject, config: IndexConfig) -> _Directions:
    model, sae = subject.model, subject.sae
    nothing: list[tuple[TokenWeight, ...]] = [()] * sae.d_sae
    W_U = model.unembedding()
    promoted, suppressed = nothing, nothing
    if W_U is not None and len(W_U) == sae.W_dec.shape[1]:
        names = [display_strings([token])[0] for token in vocabulary(model.tokenizer).tokens]
        # The head may be padded beyond the tokenizer's vocabulary; ids that no text has are left out.
        up, up_weights, down, down_weights = directions.logit_attribution(
            sae.W_dec, W_U[:, : len(names)], n=config.promoted_tokens
        )
        promoted = _token_weights(up, up_weights, names)
        suppressed = _token_weights(down, down_weights, names)
    near, cosines = directions.nearest_features(sae.W_dec, n=config.nearest_features)
    nearest = [
        tuple(NearestFeature(feature_index=i, cosine=c) for i, c in zip(row_indexes, row_cosines, strict=True))
        for row_indexes, row_cosines in zip(near.tolist(), cosines.tolist(), strict=True)
    ]
    own = directions.encoder_decoder_cosine(sae.W_enc, sae.W_dec).tolist()
    return _Directions(promoted, suppressed, nearest, own)


def _token_weights(ids: Tensor, weights: Tensor, names: list[str]) -> list[tuple[TokenWeight, ...]]:
    return [
        tuple(TokenWeight(token=names[i], token_id=i, weight=w) for i, w in zip(row_ids, row_weights, strict=True))
        for row_ids, row_weights in zip(ids.tolist(), weights.tolist(), strict=True)
    ]


def _context_records(contexts: list[TokenContext]) -> Iterator[Context]:
    for number, context in enumerate(contexts):
        yield Context(context_id=number, source=context.source, token_ids=context.token_ids.astype("<u4").tobytes())
