"""Features and examples one by one, as tests make and compare them, and packed, as the index hands them over."""

import struct
from collections.abc import Iterable, Sequence
from itertools import groupby

from sae_core.bands import bin_edges
from sae_core.records import Feature, Histogram, PackedExamples, PackedFeature, Vocabulary
from sae_core.store_rows import PackedExample, examples_row, feature_record, feature_row, unpacked_examples


def packed_feature(feature: Feature) -> PackedFeature:
    """One number after the other."""

    def rows(form: str, numbers: Iterable[Sequence[float]]) -> bytes:
        return b"".join(struct.pack(f"<{form}", *row) for row in numbers)

    histogram, sampled = feature.histogram, struct.pack("<H", feature.n_sampled)
    for tokens in (feature.tokens_on, feature.tokens_before, feature.tokens_after):
        sampled += struct.pack("<B", len(tokens)) + rows("IHf", ((t.token_id, t.count, t.share) for t in tokens))
    return PackedFeature(
        feature_index=feature.feature_index,
        density=feature.density,
        n_active=feature.n_active,
        max_activation=feature.max_activation,
        mean_activation=feature.mean_activation,
        encoder_decoder_cosine=feature.encoder_decoder_cosine,
        mean_square=feature.mean_square,
        encoder_norm=feature.encoder_norm,
        decoder_norm=feature.decoder_norm,
        histogram=_packed_histogram(histogram, feature.max_activation),
        band_shares=rows("d", ([share] for share in feature.band_shares)),
        promoted_tokens=rows("If", ((t.token_id, t.weight) for t in feature.promoted_tokens)),
        suppressed_tokens=rows("If", ((t.token_id, t.weight) for t in feature.suppressed_tokens)),
        nearest=rows("If", ((n.feature_index, n.cosine) for n in feature.nearest)),
        profile=rows("HHff", ((p.first, p.last, p.density, p.share) for p in feature.profile)),
        sampled_tokens=sampled,
        promoted_share=feature.promoted_share,
        coactive=rows("IIf", ((c.feature_index, c.together, c.jaccard) for c in feature.coactive)),
        label=feature.label,
    )


def _packed_histogram(histogram: Histogram, max_activation: float) -> bytes:
    if not histogram.counts:
        return b""
    edges = () if histogram.edges == bin_edges(max_activation) else histogram.edges
    form = f"<H{len(edges)}d{len(histogram.counts)}I"
    return struct.pack(form, len(edges), *edges, *histogram.counts)


def plain_feature(feature: PackedFeature, vocabulary: Vocabulary) -> Feature:
    """As the store will give it back."""
    labels = {} if feature.label is None else {feature.feature_index: feature.label}
    return feature_record(feature_row(feature, index_id=0), vocabulary=vocabulary, labels=labels)


def packed(examples: Iterable[PackedExample]) -> list[PackedExamples]:
    """Of examples in the order of feature, band and rank."""
    return [_packed(number, list(own)) for number, own in groupby(examples, key=lambda e: e.feature_index)]


def _packed(feature_index: int, own: list[PackedExample]) -> PackedExamples:
    def column(code: str, numbers: Iterable[float]) -> bytes:
        listed = list(numbers)
        return struct.pack(f"<{len(listed)}{code}", *listed)

    return PackedExamples(
        feature_index=feature_index,
        bands=column("B", (e.band for e in own)),
        context_ids=column("I", (e.context_id for e in own)),
        positions=column("H", (e.position for e in own)),
        activations=column("f", (e.activation for e in own)),
        copies=column("I", (e.copies for e in own)),
        lengths=column("H", (len(e.positions) for e in own)),
        active_positions=column("H", (position for e in own for position in e.positions)),
        active_values=column("e", (value for e in own for value in e.values)),
    )


def plain(examples: Iterable[PackedExamples]) -> list[PackedExample]:
    """Of all features, one by one."""
    return [
        example
        for its_examples in examples
        for example in unpacked_examples(its_examples.feature_index, examples_row(its_examples, index_id=0)["packed"])
    ]
