"""How well labels tell features apart, SAE by SAE, beside the model's own neurons and its principal components.

Scores are only compared within a group: the same model, place and corpus.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Literal

from sae_core.explain.records import ScoreRow
from sae_core.records import IndexInfo, SAEInfo
from sae_core.store import Store

Kind = Literal["pattern", "automatic", "model", "human"]
Method = Literal["detection", "fuzzing"]
CHANCE = 0.95  # of the baselines, the share that a score must exceed
CONFIDENCE = 1.96  # standard errors, for 95%


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The scores of one index together. Without a score all but the first six are None."""

    slug: str
    corpus: str
    architecture: str
    d_sae: int
    l0: float
    n_alive: int
    n_scored: int
    fvu: float
    is_basis: bool
    share_above: float | None = None  # of the scored features, those above `threshold`
    margin: float | None = None  # 95% of the time the share of all alive features is no further from it
    threshold: float | None = None  # balanced accuracy that 95% of other features' labels do not exceed
    mean_score: float | None = None
    mean_baseline: float | None = None
    mean_correlation: float | None = None  # 0 where a pattern predicts nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """SAEs and bases that read the same vectors, measured on the same corpus; what scores best comes first."""

    model_name: str
    hook_name: str
    corpus: str
    items: tuple[Scored, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    kind: Kind
    method: Method
    groups: tuple[Group, ...]


def comparison(store: Store, *, kind: Kind, method: Method) -> Comparison:
    """Of all indexes with scores of this kind."""
    found: dict[tuple[str, str, str, str], list[Scored]] = {}
    for summary in store.saes():
        for index in summary.indexes:
            rows = store.score_rows(summary.sae.slug, kind=kind, method=method, corpus=index.corpus.name)
            if rows:
                model = summary.sae.model
                place = (model.model_name, summary.sae.hook_name, index.corpus.name, index.corpus.fingerprint)
                found.setdefault(place, []).append(scored(summary.sae, index, rows))
    groups = []
    for (model_name, hook_name, corpus, _), items in found.items():
        items.sort(key=lambda item: -(item.share_above or 0.0))
        groups.append(Group(model_name=model_name, hook_name=hook_name, corpus=corpus, items=tuple(items)))
    return Comparison(kind=kind, method=method, groups=tuple(groups))


def scored(sae: SAEInfo, index: IndexInfo, rows: list[ScoreRow]) -> Scored:
    baselines = sorted(row.baseline for row in rows if row.baseline is not None)
    threshold = share = margin = mean_baseline = None
    if baselines:
        threshold = baselines[min(len(baselines) - 1, math.ceil(CHANCE * len(baselines)) - 1)]
        share = sum(row.balanced_accuracy > threshold for row in rows) / len(rows)
        margin = CONFIDENCE * math.sqrt(share * (1 - share) / len(rows))
        mean_baseline = statistics.fmean(baselines)
    predicts = any(row.correlation is not None for row in rows)
    return Scored(
        slug=sae.slug,
        corpus=index.corpus.name,
        architecture=sae.architecture,
        d_sae=sae.d_sae,
        l0=index.metrics.l0,
        n_alive=round(sae.d_sae * (1 - index.metrics.dead_share)),
        n_scored=len(rows),
        fvu=index.metrics.fvu,
        is_basis="basis" in sae.config,
        share_above=share,
        margin=margin,
        threshold=threshold,
        mean_score=statistics.fmean(row.balanced_accuracy for row in rows),
        mean_baseline=mean_baseline,
        mean_correlation=statistics.fmean(row.correlation or 0.0 for row in rows) if predicts else None,
    )
