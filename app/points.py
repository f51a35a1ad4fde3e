"""Every feature's density and maximum, read once per index and kept: charts and probes need all of them at a time."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime

from sae_core.records import FeaturePoint, IndexInfo
from sae_core.store import Store

INDEXES_KEPT = 8  # about 10 MB each for 65,536 features


class PointsCache:
    """The points of the indexes looked at last. A finished index never changes, so nothing goes stale."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int | None, datetime], Mapping[int, FeaturePoint]] = OrderedDict()
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
