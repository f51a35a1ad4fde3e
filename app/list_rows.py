"""Features as lists print them: a row each, with its numbers and its most telling examples cut to a line."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from app.examples import one_line
from app.marks import row_evidence
from sae_core.records import Example, FeatureRow, FeatureSummary, IndexInfo
from sae_core.store import Store

ROWS_KEPT = 5000  # of about 3 KB


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRow:
    feature: FeatureSummary
    evidence: Markup


def list_rows(rows: Sequence[FeatureRow], *, has_bos: bool = False) -> list[ListRow]:
    """The rows with the examples that they came with."""
    return [ListRow(feature=r.feature, evidence=_evidence(r.feature, r.examples, has_bos=has_bos)) for r in rows]


class RowsCache:
    """The evidence of the features that were listed last. A finished index never changes, so nothing goes stale."""

    def __init__(self, most: int = ROWS_KEPT) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[int | None, datetime, int], Markup] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, store: Store, index: IndexInfo, rows: Sequence[FeatureRow]) -> list[ListRow]:
        """The same of rows without examples, of which only those are read that are not known."""
        features = [row.feature for row in rows]
        keys = {f.feature_index: (index.index_id, index.created_at, f.feature_index) for f in features}
        with self._lock:
            known = {number: self._kept[key] for number, key in keys.items() if key in self._kept}
        unknown = [f for f in features if f.feature_index not in known]
        if unknown:
            has_bos = index.corpus.prepend_bos
            found = store.listed_examples(index.slug, [f.feature_index for f in unknown], corpus=index.corpus.name)
            known |= {f.feature_index: _evidence(f, found.get(f.feature_index, ()), has_bos=has_bos) for f in unknown}
        with self._lock:
            for number, key in keys.items():
                self._kept[key] = known[number]
                self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return [ListRow(feature=f, evidence=known[f.feature_index]) for f in features]


def _evidence(feature: FeatureSummary, examples: Sequence[Example], *, has_bos: bool) -> Markup:
    lines = [one_line(example, scale=feature.max_activation, has_bos=has_bos) for example in examples]
    return row_evidence(feature, lines)
