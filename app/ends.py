"""The ends of an SAE's densities: its densest features and its dead ones, as its page shows the first of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.urls import url
from sae_core.records import FeaturePoint, IndexInfo, Label
from sae_core.store import Store

SHOWN_DENSE, SHOWN_DEAD = 8, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How many features there are, the first few of them by number, and the address of the list of all."""

    n: int
    shown: tuple[FeaturePoint, ...]
    href: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Features above the dense threshold, densest first, with their labels; and the dead, by number."""

    dense: End
    dead: End
    labels: dict[int, Label]


def ends(store: Store, index: IndexInfo, points: Sequence[FeaturePoint]) -> Ends:
    threshold, features = index.metrics.dense_threshold, f"/saes/{index.slug}/features"
    dense = sorted(
        (point for point in points if point.density > threshold),
        key=lambda point: (-point.density, point.feature_index),
    )
    dead = [point for point in points if point.density == 0]
    shown = tuple(dense[:SHOWN_DENSE])
    return Ends(
        dense=End(
            n=len(dense),
            shown=shown,
            href=url(features, sort="-density", min_density=threshold, corpus=index.corpus.name),
        ),
        dead=End(
            n=len(dead),
            shown=tuple(dead[:SHOWN_DEAD]),
            href=url(features, sort="index", max_density="0", alive="0", corpus=index.corpus.name),
        ),
        labels=store.labels(index.slug, [point.feature_index for point in shown]),
    )
