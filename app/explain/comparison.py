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
Basis = Literal["neurons", "coordinates", "pca"]
CHANCE = 0.95  # of the baselines, the share that a score must exceed
CONFIDENCE = 1.96  # standard errors, for 95%


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The scores of one index together. Without a baseline, shares, threshold and its mean are None."""

    slug: str
    corpus: str
    architecture: str
    hook_name: str
    d_sae: int
    k: int | None
    l0: float
    n_alive: int
    n_scored: int
    fvu: float
    basis: Basis | None = None  # where it is none that was trained
    share_above: float | None = None  # of the scored features, those above `threshold`
    margin: float | None = None  # 95% of the time the share of all alive features is no further from it
    threshold: float | None = None  # balanced accuracy that 95% of other features' labels do not exceed
    mean_score: float | None = None
    mean_baseline: float | None = None
    mean_correlation: float | None = None  # 0 where a pattern predicts nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """SAEs that read the same vectors, and the bases made for them, measured on the same corpus.

    By width and, of one width, by active features a token; bases come last.
    """

    model_name: str
    hook_name: str
    corpus: str
    items: tuple[Scored, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The SAEs of a group by width and by active features a token. A cell has any number of them."""

    ks: tuple[int, ...]
    rows: tuple[tuple[int, tuple[tuple[Scored, ...], ...]], ...]  # width, and a cell for each of `ks`


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
                hook_name = str(summary.sae.config.get("compared_at", summary.sae.hook_name))
                place = (model.model_name, hook_name, index.corpus.name, index.corpus.fingerprint)
                found.setdefault(place, []).append(scored(summary.sae, index, rows))
    groups = []
    for (model_name, hook_name, corpus, _), items in found.items():
        items.sort(key=lambda item: (item.basis is not None, item.d_sae, item.l0, item.slug))
        groups.append(Group(model_name=model_name, hook_name=hook_name, corpus=corpus, items=tuple(items)))
    return Comparison(kind=kind, method=method, groups=tuple(groups))


def grid(group: Group) -> Grid | None:
    """None of fewer than two SAEs. An SAE without a k stands at its mean number of active features."""
    saes = [item for item in group.items if item.basis is None]
    if len(saes) < 2:
        return None
    cells: dict[tuple[int, int], list[Scored]] = {}
    for item in saes:
        cells.setdefault((item.d_sae, item.k or round(item.l0)), []).append(item)
    ks = tuple(sorted({k for _, k in cells}))
    widths = sorted({width for width, _ in cells})
    return Grid(ks=ks, rows=tuple((width, tuple(tuple(cells.get((width, k), ())) for k in ks)) for width in widths))


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
        hook_name=sae.hook_name,
        d_sae=sae.d_sae,
        k=sae.k,
        l0=index.metrics.l0,
        n_alive=round(sae.d_sae * (1 - index.metrics.dead_share)),
        n_scored=len(rows),
        fvu=index.metrics.fvu,
        basis=_basis(sae),
        share_above=share,
        margin=margin,
        threshold=threshold,
        mean_score=statistics.fmean(row.balanced_accuracy for row in rows),
        mean_baseline=mean_baseline,
        mean_correlation=statistics.fmean(row.correlation or 0.0 for row in rows) if predicts else None,
    )


def _basis(sae: SAEInfo) -> Basis | None:
    """What it is a basis of. Coordinates were called neurons before neurons were read."""
    kind = sae.config.get("basis")
    if kind == "pca":
        return "pca"
    if kind is None:
        return None
    return "neurons" if sae.hook_name.endswith("hook_mlp_post") else "coordinates"
