"""Examples one by one, as tests make and compare them, and packed, as the index hands them to the store."""

import struct
from collections.abc import Iterable
from itertools import groupby

from sae_core.records import PackedExamples
from sae_core.store_rows import PackedExample, examples_row, unpacked_examples


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
