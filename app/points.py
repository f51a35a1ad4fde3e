"""Every feature's density and maximum, read once per index and kept: charts and probes need all of them at a time.

What is drawn of all of them is kept too: thousands of points each time a page is asked for would be most of its work.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sae_core.records import FeaturePoint, IndexInfo
from sae_core.store import Store

INDEXES_KEPT = 8  # about 10 MB each for 65,536 features
DRAWN_KEPT = 6 * INDEXES_KEPT  # a figure of 65,536 points has as many MB as the points

Drawn = TypeVar("Drawn")


class PointsCache:
    """The points of the indexes looked at last. A finished index never changes, so nothing goes stale."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int | None, datetime], Mapping[int, FeaturePoint]] = OrderedDict()
        self._drawn: OrderedDict[tuple[int | None, datetime, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def points(self, store: Store, index: IndexInfo) -> Mapping[int, FeaturePoint]:
        """By feature index, in that order."""
        key = (index.index_id, index.created_at)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = {p.feature_index: p for p in store.feature_points(index.slug, corpus=index.corpus.name)}
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > INDEXES_KEPT:
                self._kept.popitem(last=False)
        return found

    def drawn(self, store: Store, index: IndexInfo, draw: Callable[[Sequence[FeaturePoint]], Drawn]) -> Drawn:
        """What a function of `charts` makes of the points, in their order."""
        key = (index.index_id, index.created_at, draw.__name__)
        with self._lock:
            if key in self._drawn:
                self._drawn.move_to_end(key)
                found: Drawn = self._drawn[key]
                return found
        found = draw(list(self.points(store, index).values()))
        with self._lock:
            self._drawn[key] = found
            while len(self._drawn) > DRAWN_KEPT:
                self._drawn.popitem(last=False)
        return found
