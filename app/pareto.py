"""An SAE among its like: FVU, CE recovered and L0 of all SAEs of one model and hook that were measured on one text.

What was measured comes from the indexes, or from what `saescope sweep` left beside the weights, whichever has the more
SAEs on the text of the one in question. An SAE is on the front if none that has at most its L0 is better.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.card import as_json
from app.compare_views import Measure, measures
from sae_core.disk import saving
from sae_core.records import Evaluation, IndexInfo, ModelInfo, SAEInfo, SAESummary
from sae_core.store import Store

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """One SAE. `on_front` of FVU and of CE recovered; None where CE recovered was not measured."""

    slug: str
    architecture: str
    d_sae: int
    k: int | None
    l0: float
    fvu: float
    ce_recovered: float | None
    is_this: bool
    fvu_on_front: bool
    ce_on_front: bool | None
    page_corpus: str | None  # the corpus with which its page shows these numbers; None: they are a sweep's


@dataclass(frozen=True, slots=True, kw_only=True)
class Pareto:
    """The SAEs that read the same place of the same model and were measured on the same text, by L0.

    `n_elsewhere` more of that place were not measured on this text.
    """

    slug: str
    corpus: str
    n_tokens: int
    source: Literal["index", "sweep"]
    items: tuple[ParetoPoint, ...]
    n_elsewhere: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCorpora:
    """An SAE's several corpora in columns, the one that is looked at first."""

    corpora: tuple[IndexInfo, ...]
    measures: tuple[Measure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What a plot needs of an index or an evaluation."""

    fingerprint: str
    corpus: str
    n_tokens: int
    l0: float
    fvu: float
    ce_recovered: float | None
    page_corpus: str | None


def save_evaluation(evaluation: Evaluation, *, folder: Path) -> None:
    """Beside an SAE's weights, whole or not at all."""
    new = folder / f"{EVALUATION_FILE}.new"
    with saving(folder):
        new.write_text(as_json(evaluation) + "\n", encoding="utf-8")
        new.replace(folder / EVALUATION_FILE)


def pareto(store: Store, summary: SAESummary, index: IndexInfo | None) -> Pareto | None:
    """Of the texts on which this SAE was measured, that of `index` and the sweep's, the one that more SAEs were
    measured on; None if it was measured on none."""
    sae = summary.sae
    alike = [s for s in store.saes() if _place(s.sae) == _place(sae)]
    of_indexes = [(s.sae, _of_index(i)) for s in alike for i in reversed(s.indexes)]  # the newest last
    of_sweeps = [(s.sae, m) for s in alike if (m := _of_sweep(s.sae)) is not None]
    own_sweep = next((m.fingerprint for own, m in of_sweeps if own.slug == sae.slug), None)
    by_index = _on_text(of_indexes, index.corpus.fingerprint if index else None)
    by_sweep = _on_text(of_sweeps, own_sweep)
    found = by_sweep if len(by_sweep) > len(by_index) else by_index
    if sae.slug not in found:
        return None
    _, text = found[sae.slug]
    return Pareto(
        slug=sae.slug,
        corpus=text.corpus,
        n_tokens=text.n_tokens,
        source="sweep" if found is by_sweep else "index",
        items=_points(list(found.values()), this=sae.slug),
        n_elsewhere=len(alike) - len(found),
    )


def own_corpora(summary: SAESummary, index: IndexInfo) -> OwnCorpora | None:
    """None where there is one corpus."""
    corpora = (index, *(other for other in summary.indexes if other.index_id != index.index_id))
    return OwnCorpora(corpora=corpora, measures=tuple(measures(corpora))) if len(corpora) > 1 else None


def _place(sae: SAEInfo) -> tuple[ModelInfo, str, str]:
    """What an SAE reads and what it stands for: only of the same do numbers say which is better."""
    return sae.model, sae.hook_name, sae.target_hook_name


def _on_text(
    measured: Sequence[tuple[SAEInfo, _Measured]], fingerprint: str | None
) -> dict[str, tuple[SAEInfo, _Measured]]:
    """By slug, of those on this text whose numbers are numbers."""
    return {sae.slug: (sae, m) for sae, m in measured if m.fingerprint == fingerprint and math.isfinite(m.fvu)}


def _points(measured: Sequence[tuple[SAEInfo, _Measured]], *, this: str) -> tuple[ParetoPoint, ...]:
    fvus = [(m.l0, m.fvu) for _, m in measured]
    ces = [(m.l0, -m.ce_recovered) for _, m in measured if m.ce_recovered is not None]
    points = [
        ParetoPoint(
            slug=sae.slug,
            architecture=sae.architecture,
            d_sae=sae.d_sae,
            k=sae.k,
            l0=m.l0,
            fvu=m.fvu,
            ce_recovered=m.ce_recovered,
            is_this=sae.slug == this,
            fvu_on_front=_on_front((m.l0, m.fvu), fvus),
            ce_on_front=None if m.ce_recovered is None else _on_front((m.l0, -m.ce_recovered), ces),
            page_corpus=m.page_corpus,
        )
        for sae, m in measured
    ]
    return tuple(sorted(points, key=lambda point: (point.l0, point.slug)))


def _on_front(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    """Whether no other has at most its L0 and is better: both the smaller, the better."""
    return not any(other[0] <= point[0] and other[1] <= point[1] and other != point for other in points)


def _of_index(index: IndexInfo) -> _Measured:
    return _Measured(
        fingerprint=index.corpus.fingerprint,
        corpus=index.corpus.name,
        n_tokens=index.corpus.n_tokens,
        l0=index.metrics.l0,
        fvu=index.metrics.fvu,
        ce_recovered=index.metrics.ce_recovered,
        page_corpus=index.corpus.name,
    )


def _of_sweep(sae: SAEInfo) -> _Measured | None:
    """What `save_evaluation` left; None where there is nothing, or something else."""
    try:
        content = json.loads((Path(sae.weights_path) / EVALUATION_FILE).read_text(encoding="utf-8"))
        corpus, metrics = content["corpus"], content["metrics"]
        if content["slug"] != sae.slug or not sae.weights_path:
            return None
        return _Measured(
            fingerprint=str(corpus["fingerprint"]),
            corpus=str(corpus["name"]),
            n_tokens=int(corpus["n_tokens"]),
            l0=float(metrics["l0"]),
            fvu=math.nan if metrics["fvu"] is None else float(metrics["fvu"]),
            ce_recovered=None if metrics["ce_recovered"] is None else float(metrics["ce_recovered"]),
            page_corpus=None,
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
