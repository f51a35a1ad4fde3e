"""A reader's own text: run it, and put beside each feature what the corpus says about it.

text ── inference.answer ──> ProbeResult ─┐
store: labels; density and maximum ───────┴──> ProbeReport ──> the API's answer
                                                   └──> ProbeView (`probe_views`) ──> the page
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from app.deps import ProbeSort, clean_text
from app.inference import Inference, ProbeJob
from app.points import PointsCache
from sae_core.dashboards import check_has_weights
from sae_core.errors import InputError, NotFoundError, PromptError
from sae_core.records import FeaturePoint, IndexInfo, ProbeResult, ProbeToken, Prompt, SAESummary
from sae_core.store import Store

TOP_K, TOP_FEATURES = 10, 50
# Reports are arithmetic in Python: several threads would only hand the interpreter's lock to and fro.
_ONE_BY_ONE = ThreadPoolExecutor(1, thread_name_prefix="probe-report")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFeature:
    """A feature on one token. `density` and `corpus_max` are None when the SAE has no index."""

    feature_index: int
    activation: float
    label: str | None
    density: float | None
    corpus_max: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportToken:
    """One token and its strongest features, strongest first; `n_active` counts all that are active on it."""

    token: str
    token_id: int
    is_special: bool
    n_active: int
    features: tuple[TokenFeature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFeature:
    """A feature over the whole text, with its activation on every token.

    `mean_activation` is over the tokens on which it is active. `rarity` is its maximum here over the largest known one,
    times log2(1 / density): None when the SAE has no index.
    """

    feature_index: int
    label: str | None
    density: float | None
    corpus_max: float | None
    max_activation: float
    max_position: int
    sum_activation: float
    mean_activation: float
    rarity: float | None
    activations: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What the features of an SAE do on one text.

    `n_features` counts all that are active and pass the filters; `features` has the first of them and the pinned ones.
    """

    slug: str
    text: str
    seconds: float
    sort: ProbeSort
    n_features: int
    tokens: tuple[ReportToken, ...]
    features: tuple[ReportFeature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is wanted of a text's features. Filters come before ranking; `pins` are in the answer wherever they rank.

    `chosen` is a token of which `TOP_K` features are wanted, where `top_k` asks for fewer of each.
    """

    text: str
    top_k: int = TOP_K
    chosen: int | None = None
    top_features: int = TOP_FEATURES
    pins: tuple[int, ...] = ()
    sort: ProbeSort = "strength"
    corpus: str | None = None
    max_density: float | None = None
    special: bool = False  # whether special tokens have features too
    session: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trace:
    """A feature's activations along a text, at the positions where it is active."""

    feature_index: int
    activations: Mapping[int, float]
    max_activation: float


async def probe_report(
    store: Store, inference: Inference, *, points: PointsCache, summary: SAESummary, asked: Asked
) -> ProbeReport:
    """Probe a text. Raises PromptError, NotFoundError for an unknown pin or corpus, and what the worker raises."""
    sae, index = summary.sae, chosen_index(summary, corpus=asked.corpus)
    check_has_weights(sae)
    text = checked_text(asked.text)
    for pin in asked.pins:
        if pin >= sae.d_sae:
            raise NotFoundError(f'The SAE "{sae.slug}" has no feature {pin}; its features are 0 to {sae.d_sae - 1}.')
    if asked.max_density is not None and index is None:
        raise InputError(f'The SAE "{sae.slug}" has no index, so densities are not known: leave max_density out.')
    prompt = Prompt(text=text, special=asked.special, session=asked.session)
    result = await inference.answer(ProbeJob(sae=sae, prompt=prompt))
    return await asyncio.get_running_loop().run_in_executor(
        _ONE_BY_ONE, lambda: _report(result, store, points, index=index, asked=asked)
    )


def checked_text(text: str) -> str:
    """A text that can be probed."""
    text = clean_text(text)
    if not text.strip():
        raise PromptError("The text is empty: type something to see which features it activates.")
    return text


def chosen_index(summary: SAESummary, *, corpus: str | None) -> IndexInfo | None:
    """The index of this corpus, or the newest; None where there is none yet."""
    if corpus is None:
        return summary.indexes[0] if summary.indexes else None
    for index in summary.indexes:
        if index.corpus.name == corpus:
            return index
    raise NotFoundError(f'The SAE "{summary.sae.slug}" is not indexed on a corpus "{corpus}".')


def indexed(summary: SAESummary, *, corpus: str | None) -> IndexInfo:
    """The same of an SAE of which there must be one."""
    index = chosen_index(summary, corpus=corpus)
    if index is None:
        raise NotFoundError(
            f'The SAE "{summary.sae.slug}" is not indexed yet; run `saescope index {summary.sae.slug} --corpus …`.'
        )
    return index


def _report(
    result: ProbeResult, store: Store, points: PointsCache, *, index: IndexInfo | None, asked: Asked
) -> ProbeReport:
    known = points.points(store, index) if index is not None else {}
    if asked.max_density is not None:
        wanted = {i for i, point in known.items() if point.density <= asked.max_density}.union(asked.pins)
    else:
        wanted = None
    tokens = [_filtered(token, wanted) for token in result.tokens]
    traces = _traces(tokens, asked.pins)
    traces.sort(key=lambda trace: _rank(trace, known.get(trace.feature_index), sort=asked.sort))
    shown = [t for i, t in enumerate(traces) if i < asked.top_features or t.feature_index in asked.pins]
    counts = [max(asked.top_k, TOP_K if position == asked.chosen else 0) for position in range(len(tokens))]
    named = {i for token, n in zip(tokens, counts, strict=True) for i in token.feature_indexes[:n]}
    texts = store.labels_as_text(result.slug, named.union(trace.feature_index for trace in shown))
    return ProbeReport(
        slug=result.slug,
        text=result.text,
        seconds=result.seconds,
        sort=asked.sort,
        n_features=sum(bool(trace.activations) for trace in traces),
        tokens=tuple(_report_token(t, top_k=n, labels=texts, known=known) for t, n in zip(tokens, counts, strict=True)),
        features=tuple(_report_feature(t, n_tokens=len(tokens), labels=texts, known=known) for t in shown),
    )


def _filtered(token: ProbeToken, wanted: Collection[int] | None) -> ProbeToken:
    if wanted is None:
        return token
    kept = [(i, a) for i, a in zip(token.feature_indexes, token.activations, strict=True) if i in wanted]
    return ProbeToken(
        token=token.token,
        token_id=token.token_id,
        is_special=token.is_special,
        feature_indexes=tuple(i for i, _ in kept),
        activations=tuple(a for _, a in kept),
    )


def _traces(tokens: Sequence[ProbeToken], pins: Collection[int]) -> list[_Trace]:
    """One for each feature that is active on any token, and for each pinned one."""
    active: defaultdict[int, dict[int, float]] = defaultdict(dict)
    for position, token in enumerate(tokens):
        for feature_index, activation in zip(token.feature_indexes, token.activations, strict=True):
            active[feature_index][position] = activation
    for pin in pins:
        active.setdefault(pin, {})
    return [
        _Trace(feature_index=i, activations=found, max_activation=max(found.values(), default=0.0))
        for i, found in active.items()
    ]


def _rank(trace: _Trace, known: FeaturePoint | None, *, sort: ProbeSort) -> tuple[float, float, int]:
    """What to sort by, smallest first."""
    values = trace.activations.values()
    strength = trace.max_activation
    match sort:
        case "strength":
            value = strength
        case "sum":
            value = sum(values)
        case "mean":
            value = sum(values) / len(values) if values else 0.0
        case "rarity":
            value = _rarity(strength, known) if known else 0.0
    return -value, -strength, trace.feature_index


def _rarity(strength: float, known: FeaturePoint) -> float:
    """How far a feature rises here, weighed by how seldom it does anything: in bits at its largest known activation."""
    if strength <= 0:
        return 0.0
    bits = math.log2(1 / known.density) if known.density > 0 else math.log2(2**31)  # never seen: rarer than any corpus
    return strength / max(known.max_activation, strength) * bits


def _report_token(
    token: ProbeToken, *, top_k: int, labels: Mapping[int, str], known: Mapping[int, FeaturePoint]
) -> ReportToken:
    return ReportToken(
        token=token.token,
        token_id=token.token_id,
        is_special=token.is_special,
        n_active=len(token.feature_indexes),
        features=tuple(
            TokenFeature(
                feature_index=feature_index,
                activation=activation,
                label=labels.get(feature_index),
                density=point.density if (point := known.get(feature_index)) else None,
                corpus_max=point.max_activation if point else None,
            )
            for feature_index, activation in zip(token.feature_indexes[:top_k], token.activations, strict=False)
        ),
    )


def _report_feature(
    trace: _Trace, *, n_tokens: int, labels: Mapping[int, str], known: Mapping[int, FeaturePoint]
) -> ReportFeature:
    point = known.get(trace.feature_index)
    values, strength = trace.activations, trace.max_activation
    total = sum(values.values())
    return ReportFeature(
        feature_index=trace.feature_index,
        label=labels.get(trace.feature_index),
        density=point.density if point else None,
        corpus_max=point.max_activation if point else None,
        max_activation=strength,
        max_position=next((position for position, value in values.items() if value == strength), 0),
        sum_activation=total,
        mean_activation=total / len(values) if values else 0.0,
        rarity=_rarity(strength, point) if point else None,
        activations=tuple(values.get(position, 0.0) for position in range(n_tokens)),
    )
