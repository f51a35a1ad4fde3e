"""Records <-> rows: what `store` writes into columns and makes of them again. Packed numbers are little-endian.

No queries here. A row read is a mapping from column name to value, a row to write a dict.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from sqlalchemy import RowMapping

from sae_core.bands import bin_edges
from sae_core.errors import InputError
from sae_core.labels import KINDS
from sae_core.metrics import explained_variance
from sae_core.records import (
    TOP_BAND,
    CoactiveFeature,
    Context,
    CorpusInfo,
    Example,
    Feature,
    FeatureSummary,
    Histogram,
    IndexInfo,
    IndexMetrics,
    Label,
    ModelInfo,
    NearestFeature,
    PackedExamples,
    PackedFeature,
    PositionShare,
    SAEInfo,
    TokenShare,
    TokenWeight,
    Vocabulary,
)
from sae_core.search_terms import clean_text
from sae_core.tokens_text import display_strings


def model_row(model: ModelInfo, vocabulary: Vocabulary) -> dict[str, Any]:
    packed, special_ids = _packed_vocabulary(vocabulary), _pack("I", sorted(vocabulary.special_ids))
    return {
        "model_name": model.model_name,
        "revision": model.revision,
        "architecture": model.architecture,
        "n_layers": int(model.n_layers),
        "d_model": int(model.d_model),
        "vocabulary": packed,
        "special_ids": special_ids,
        "vocabulary_sha256": hashlib.sha256(packed + b"\0" + special_ids).hexdigest(),
    }


def vocabulary_record(row: RowMapping) -> Vocabulary:
    data = zlib.decompress(row["vocabulary"])
    (n_tokens,) = struct.unpack_from("<I", data)
    lengths = struct.unpack_from(f"<{n_tokens}I", data, 4)
    tokens, start = [], 4 + 4 * n_tokens
    for length in lengths:
        tokens.append(data[start : start + length])
        start += length
    return Vocabulary(tokens=tuple(tokens), special_ids=frozenset(_unpack("I", row["special_ids"])))


def _packed_vocabulary(vocabulary: Vocabulary) -> bytes:
    lengths = _pack("I", [len(token) for token in vocabulary.tokens])
    return zlib.compress(struct.pack("<I", len(vocabulary.tokens)) + lengths + b"".join(vocabulary.tokens), 6)


def sae_row(sae: SAEInfo) -> dict[str, Any]:
    return {
        "slug": sae.slug,
        "hook_name": sae.hook_name,
        "layer": int(sae.layer),
        "architecture": sae.architecture,
        "d_in": int(sae.d_in),
        "d_sae": int(sae.d_sae),
        "k": None if sae.k is None else int(sae.k),
        "n_training_tokens": int(sae.n_training_tokens),
        "weights_path": clean_text(sae.weights_path),
        "created_at": sae.created_at,
        "config": json.loads(json.dumps(dict(sae.config), default=str)),  # as it will be read: tuples become lists
    }


def sae_record(row: RowMapping) -> SAEInfo:
    """From a row of `saes` with its model's columns as model_name, revision, model_architecture, n_layers, d_model."""
    return SAEInfo(
        slug=row["slug"],
        model=ModelInfo(
            model_name=row["model_name"],
            revision=row["revision"],
            architecture=row["model_architecture"],
            n_layers=row["n_layers"],
            d_model=row["d_model"],
        ),
        hook_name=row["hook_name"],
        layer=row["layer"],
        architecture=row["architecture"],
        d_in=row["d_in"],
        d_sae=row["d_sae"],
        k=row["k"],
        n_training_tokens=row["n_training_tokens"],
        weights_path=row["weights_path"],
        created_at=row["created_at"],
        config=row["config"],
    )


def corpus_row(corpus: CorpusInfo) -> dict[str, Any]:
    return {
        "name": clean_text(corpus.name),
        "fingerprint": corpus.fingerprint,
        "sources": [clean_text(source) for source in corpus.sources],
        "context_size": int(corpus.context_size),
        "prepend_bos": bool(corpus.prepend_bos),
        "n_documents": int(corpus.n_documents),
        "n_contexts": int(corpus.n_contexts),
        "n_tokens": int(corpus.n_tokens),
    }


def index_row(info: IndexInfo, *, sae_id: int, corpus_id: int) -> dict[str, Any]:
    metrics = info.metrics
    return {
        "sae_id": sae_id,
        "corpus_id": corpus_id,
        "l0": float(metrics.l0),
        "fvu": _null_if_nan(metrics.fvu),
        "ce_recovered": _null_if_nan(metrics.ce_recovered),
        "dead_share": float(metrics.dead_share),
        "dense_share": float(metrics.dense_share),
        "dense_threshold": float(metrics.dense_threshold),
        "dtype": info.dtype,
        "seed": int(info.seed),
        "seconds": float(info.seconds),
        "created_at": info.created_at,
        "cosine": _null_if_nan(metrics.cosine),
        "reconstruction_bias": _null_if_nan(metrics.reconstruction_bias),
        "ce_loss": _null_if_nan(metrics.ce_loss),
        "ce_loss_with_sae": _null_if_nan(metrics.ce_loss_with_sae),
        "ce_loss_with_zeros": _null_if_nan(metrics.ce_loss_with_zeros),
        "kl": _null_if_nan(metrics.kl),
        "ce_tokens": None if metrics.ce_tokens is None else int(metrics.ce_tokens),
        "encoder_decoder_cosine": _null_if_nan(metrics.encoder_decoder_cosine),
        "encoder_decoder_histogram": None
        if metrics.encoder_decoder_histogram is None
        else _packed_histogram(metrics.encoder_decoder_histogram),
    }


def index_record(row: RowMapping) -> IndexInfo:
    """From a row of `indexes` with the columns of its corpus and the slug of its SAE."""
    fvu, histogram = _nan_if_null(row["fvu"]), row["encoder_decoder_histogram"]
    return IndexInfo(
        slug=row["slug"],
        corpus=CorpusInfo(
            name=row["name"],
            fingerprint=row["fingerprint"],
            sources=tuple(row["sources"]),
            context_size=row["context_size"],
            prepend_bos=row["prepend_bos"],
            n_documents=row["n_documents"],
            n_contexts=row["n_contexts"],
            n_tokens=row["n_tokens"],
        ),
        metrics=IndexMetrics(
            l0=row["l0"],
            fvu=fvu,
            explained_variance=explained_variance(fvu),
            cosine=row["cosine"],
            reconstruction_bias=row["reconstruction_bias"],
            ce_recovered=row["ce_recovered"],
            ce_loss=row["ce_loss"],
            ce_loss_with_sae=row["ce_loss_with_sae"],
            ce_loss_with_zeros=row["ce_loss_with_zeros"],
            kl=row["kl"],
            ce_tokens=row["ce_tokens"],
            dead_share=row["dead_share"],
            dense_share=row["dense_share"],
            dense_threshold=row["dense_threshold"],
            encoder_decoder_cosine=row["encoder_decoder_cosine"],
            encoder_decoder_histogram=None if histogram is None else _unpacked_histogram(histogram),
        ),
        dtype=row["dtype"],
        seed=row["seed"],
        seconds=row["seconds"],
        created_at=row["created_at"],
        index_id=row["index_id"],
    )


def context_row(context: Context, *, corpus_id: int) -> dict[str, Any]:
    return {
        "corpus_id": corpus_id,
        "context_id": int(context.context_id),
        "source": clean_text(context.source),
        "token_ids": stored_token_ids(context.token_ids),
    }


_FEATURE_COLUMNS = tuple(field.name for field in fields(PackedFeature) if field.name != "label")
_FEATURE_NUMBERS = ("encoder_decoder_cosine", "mean_square", "encoder_norm", "decoder_norm", "promoted_share")


def feature_row(feature: PackedFeature, *, index_id: int) -> dict[str, Any]:
    row = {name: getattr(feature, name) for name in _FEATURE_COLUMNS}
    row["index_id"] = index_id
    for name in _FEATURE_NUMBERS:
        row[name] = _null_if_nan(row[name])
    return row


def summary_record(row: Mapping[Any, Any], *, vocabulary: Vocabulary, labels: Mapping[int, Label]) -> FeatureSummary:
    return FeatureSummary(**_summarised(row, vocabulary=vocabulary, labels=labels))


def _summarised(row: Mapping[Any, Any], *, vocabulary: Vocabulary, labels: Mapping[int, Label]) -> dict[str, Any]:
    return {
        "feature_index": row["feature_index"],
        "density": row["density"],
        "n_active": row["n_active"],
        "max_activation": row["max_activation"],
        "mean_activation": row["mean_activation"],
        "encoder_decoder_cosine": _nan_if_null(row["encoder_decoder_cosine"]),
        "histogram": _unpacked_histogram(row["histogram"], max_activation=row["max_activation"]),
        "promoted_tokens": _token_weights(row["promoted_tokens"], vocabulary=vocabulary),
        "label": labels.get(row["feature_index"]),
    }


def feature_record(row: Mapping[Any, Any], *, vocabulary: Vocabulary, labels: Mapping[int, Label]) -> Feature:
    return Feature(
        **_summarised(row, vocabulary=vocabulary, labels=labels),
        band_shares=_unpack("d", row["band_shares"]),
        suppressed_tokens=_token_weights(row["suppressed_tokens"], vocabulary=vocabulary),
        nearest=tuple(
            NearestFeature(feature_index=other, cosine=cosine, label=labels[other].text if other in labels else None)
            for other, cosine in unpacked_pairs(row["nearest"])
        ),
        mean_square=row["mean_square"],
        encoder_norm=row["encoder_norm"],
        decoder_norm=row["decoder_norm"],
        profile=tuple(
            PositionShare(first=first, last=last, density=density, share=share)
            for first, last, density, share in struct.iter_unpack("<HHff", row["profile"] or b"")
        ),
        promoted_share=row["promoted_share"],
        coactive=tuple(
            CoactiveFeature(
                feature_index=other,
                together=together,
                jaccard=jaccard,
                label=labels[other].text if other in labels else None,
            )
            for other, together, jaccard in struct.iter_unpack("<IIf", row["coactive"] or b"")
        ),
        **_unpacked_samples(row["sampled_tokens"] or b"", vocabulary=vocabulary),
    )


def named_features(row: RowMapping) -> list[int]:
    """The other features that a row of `features` names."""
    nearest = [feature_index for feature_index, _ in unpacked_pairs(row["nearest"])]
    return nearest + [feature_index for feature_index, _, _ in struct.iter_unpack("<IIf", row["coactive"] or b"")]


_EXAMPLE_COLUMNS = {
    "bands": "B",
    "context_ids": "I",
    "positions": "H",
    "activations": "f",
    "copies": "I",
    "lengths": "H",
}


class PackedExample(NamedTuple):
    """One example of a row of `examples`, its tokens not yet looked up."""

    feature_index: int
    band: int
    rank: int
    context_id: int
    position: int
    activation: float
    copies: int
    positions: tuple[int, ...]  # tokens of the context on which the feature is active
    values: tuple[float, ...]  # its activations there


_NARROWED = b"\xff\xff"  # in place of the count; rows of an older saescope begin with that, and have no widths
_CODES: dict[int, Literal["B", "H", "I"]] = {1: "B", 2: "H", 4: "I"}  # of numbers so many bytes wide


def examples_row(examples: PackedExamples, *, index_id: int) -> dict[str, Any]:
    """`packed`: a mark, how many examples (uint16), their columns, then the tokens on which the feature is active.

    Whole numbers take as many bytes as the largest of their column needs; how many stands before it.
    """
    parts = [_NARROWED, struct.pack("<H", len(examples.bands))]
    for name, code in _EXAMPLE_COLUMNS.items():
        column = getattr(examples, name)
        parts += [column] if code in "Bf" else _narrowed(column, struct.calcsize(code))
    parts += [*_narrowed(examples.active_positions, 2), examples.active_values]
    return {"index_id": index_id, "feature_index": int(examples.feature_index), "packed": b"".join(parts)}


def unpacked_examples(feature_index: int, packed: bytes, *, n_top: int | None = None) -> list[PackedExample]:
    """The examples of a row, by band and rank; with `n_top` only the first so many of the top band."""
    is_narrowed = packed.startswith(_NARROWED)
    start = len(_NARROWED) * is_narrowed
    (n,) = struct.unpack_from("<H", packed, start)
    start += 2
    n_shown = n if n_top is None else min(n_top, packed.count(TOP_BAND, start, start + n))  # bands come first
    columns = []
    for code in _EXAMPLE_COLUMNS.values():
        if is_narrowed and code not in "Bf":
            code, start = _CODES[packed[start]], start + 1
        columns.append(struct.unpack_from(f"<{n_shown}{code}", packed, start))
        start += n * struct.calcsize(code)
    code = "H"  # of the positions, which float16 values follow
    if is_narrowed:
        code, start = _CODES[packed[start]], start + 1
    n_active, n_values = sum(columns[-1]), (len(packed) - start) // (struct.calcsize(code) + 2)
    positions = struct.unpack_from(f"<{n_active}{code}", packed, start)
    values = struct.unpack_from(f"<{n_active}e", packed, start + n_values * struct.calcsize(code))
    found: list[PackedExample] = []
    first = 0
    for band, context_id, position, activation, copies, length in zip(*columns, strict=True):
        rank = found[-1].rank + 1 if found and found[-1].band == band else 0
        run = slice(first, first + length)
        first += length
        found.append(
            PackedExample(
                feature_index, band, rank, context_id, position, activation, copies, positions[run], values[run]
            )
        )
    return found


def _narrowed(column: bytes, width: int) -> list[bytes]:
    """How many bytes the largest of these numbers needs, in one byte, and all of them that wide."""
    while width > 1:
        halves = memoryview(column).cast(_CODES[width // 2])  # low, high, low, high
        high = halves[1::2].tobytes()
        if high.count(0) < len(high):
            break
        column, width = halves[::2].tobytes(), width // 2
    return [bytes([width]), column]


def example_record(example: PackedExample, context: RowMapping, *, vocabulary: Vocabulary) -> Example:
    """An example on its context, a row with `source` and `token_ids`."""
    token_ids = unpacked_token_ids(context["token_ids"])
    activations = [0.0] * len(token_ids)
    for position, value in zip(example.positions, example.values, strict=True):
        activations[position] = value
    return Example(
        feature_index=example.feature_index,
        context_id=example.context_id,
        source=context["source"],
        band=example.band,
        rank=example.rank,
        position=example.position,
        activation=example.activation,
        tokens=tuple(token_texts(token_ids, vocabulary=vocabulary)),
        token_ids=token_ids,
        activations=tuple(activations),
        copies=example.copies,
    )


def label_row(feature_index: int, label: Label, *, sae_id: int) -> dict[str, Any]:
    text = clean_text(label.text).strip()
    if label.kind not in KINDS:
        raise InputError(f'A label\'s kind is one of {", ".join(KINDS)}, not "{label.kind}"; change it.')
    if not text:
        raise InputError(f"The label of feature {feature_index} is empty; write what the feature means.")
    return {
        "sae_id": sae_id,
        "feature_index": int(feature_index),
        "kind": label.kind,
        "text": text,
        "author": clean_text(label.author),
        "score": _null_if_nan(label.score),
        "created_at": label.created_at,
        "certainty": _null_if_nan(label.certainty),
        "prompt_version": label.prompt_version,
    }


_LABEL_FIELDS = tuple(field.name for field in fields(Label))


def label_record(row: RowMapping) -> Label:
    return Label(**{name: row[name] for name in _LABEL_FIELDS})


def stored_token_ids(token_ids: bytes) -> bytes:
    """uint32 as a context is stored: where all ids allow it as uint16, behind a byte that makes the length odd."""
    ids = _unpack("I", token_ids)
    return b"\2" + _pack("H", ids) if max(ids, default=0) < 1 << 16 else token_ids


def unpacked_token_ids(token_ids: bytes) -> tuple[int, ...]:
    """Of uint32, or of a context as it is stored."""
    return _unpack("H", token_ids[1:]) if len(token_ids) % 2 else _unpack("I", token_ids)


def wide_token_ids(token_ids: bytes) -> bytes:
    """A context as it is stored, as uint32: what checksums are taken of."""
    return _pack("I", unpacked_token_ids(token_ids))


def token_texts(token_ids: Sequence[int], *, vocabulary: Vocabulary) -> list[str]:
    """Display strings of consecutive tokens. A model may have more ids than its tokenizer has tokens: "[50300]"."""
    known = vocabulary.texts
    try:
        texts = [known[i] for i in token_ids]
    except IndexError:
        texts = [None]
    if None not in texts:  # most of them
        return texts  # type: ignore[return-value]
    tokens = vocabulary.tokens
    return display_strings([tokens[i] if i < len(tokens) else b"[%d]" % i for i in token_ids])


def _token_text(token_id: int, *, vocabulary: Vocabulary) -> str:
    """Display string of a token that stands alone."""
    known = vocabulary.texts[token_id] if token_id < len(vocabulary.texts) else None
    return known if known is not None else token_texts([token_id], vocabulary=vocabulary)[0]


def top_places(examples: PackedExamples, *, most: int) -> list[tuple[int, int]]:
    """Context and position of the first so many top examples."""
    n = min(most, examples.bands.count(TOP_BAND))
    return list(
        zip(_unpack("I", examples.context_ids[: 4 * n]), _unpack("H", examples.positions[: 2 * n]), strict=True)
    )


def _token_weights(packed: bytes, *, vocabulary: Vocabulary) -> tuple[TokenWeight, ...]:
    return tuple(
        TokenWeight(token=_token_text(token_id, vocabulary=vocabulary), token_id=token_id, weight=weight)
        for token_id, weight in unpacked_pairs(packed)
    )


def _packed_histogram(histogram: Histogram) -> bytes:
    edges, counts = histogram.edges, histogram.counts
    return struct.pack("<H", len(edges)) + _pack("d", edges) + _pack("I", counts)


def _unpacked_histogram(packed: bytes, *, max_activation: float = 0.0) -> Histogram:
    if not packed:
        return Histogram(edges=(), counts=())
    (n_edges,) = struct.unpack_from("<H", packed)
    counts = 2 + 8 * n_edges
    edges = _unpack("d", packed[2:counts]) if n_edges else bin_edges(max_activation)
    return Histogram(edges=edges, counts=_unpack("I", packed[counts:]))


def tokens_fired_on(packed: bytes) -> list[int]:
    """The ids of the tokens that a feature fires on, of its column `sampled_tokens`."""
    size = struct.calcsize("<IHf")
    return [row[0] for row in struct.iter_unpack("<IHf", packed[3 : 3 + size * packed[2]])] if packed else []


def _unpacked_samples(packed: bytes, *, vocabulary: Vocabulary) -> dict[str, Any]:
    if not packed:
        return {}
    found: dict[str, Any] = {"n_sampled": struct.unpack_from("<H", packed)[0]}
    start, size = 2, struct.calcsize("<IHf")
    for name in ("tokens_on", "tokens_before", "tokens_after"):
        end = start + 1 + size * packed[start]
        found[name] = tuple(
            TokenShare(token=_token_text(token_id, vocabulary=vocabulary), token_id=token_id, count=count, share=share)
            for token_id, count, share in struct.iter_unpack("<IHf", packed[start + 1 : end])
        )
        start = end
    return found


def unpacked_pairs(packed: bytes) -> list[tuple[int, float]]:
    return list(struct.iter_unpack("<If", packed))


def _pack(code: str, numbers: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}{code}", *numbers)


def _unpack(code: str, packed: bytes) -> tuple[Any, ...]:
    return struct.unpack(f"<{len(packed) // struct.calcsize('<' + code)}{code}", packed)


def _null_if_nan(number: float | None) -> float | None:
    return None if number is None or math.isnan(number) else float(number)


def _nan_if_null(number: float | None) -> float:
    return math.nan if number is None else number
