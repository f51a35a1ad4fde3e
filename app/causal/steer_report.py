"""Steering: what a page's address asks for as the worker's request, and the worker's answer as the page prints it.

SteerQuery, store: maxima, labels ──> SteerPlan ── SteerStream ──> parts ──> events
                                         └───────────────────────────┴──> SteerReport ──> page, JSON, permalink
"""

import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

from pydantic import BeforeValidator, Field
from starlette.concurrency import run_in_threadpool

from app.causal.jobs import SteerStream
from app.deps import LONGEST_TEXT, CorpusQuery, Index, clean_text
from app.inference import Inference
from app.points import PointsCache
from app.probing import chosen_index
from sae_core.causal.records import (
    DOSES,
    MAX_PUSHES,
    MAX_TURNS,
    SWAMPS,
    Column,
    Mode,
    Push,
    Steering,
    SteerPart,
    SteerRequest,
    Where,
)
from sae_core.errors import BusyError, NotFoundError, PromptError
from sae_core.records import SAEInfo, SAESummary
from sae_core.store import Store

REPORTS_KEPT = 64  # finished ones, some ten kilobytes each
STRONGEST = 100.0  # in maxima, either way
Strength = Annotated[
    Annotated[float, Field(ge=-STRONGEST, le=STRONGEST, allow_inf_nan=False)] | None,
    BeforeValidator(lambda value: None if value == "" else value),
]
Turn = Annotated[str, Field(max_length=LONGEST_TEXT)]


class SteerQuery(CorpusQuery):
    """A prompt, the features that are pushed, and how tokens are drawn: all of a steering."""

    prompt: str = Field(default="", max_length=LONGEST_TEXT)
    feature: list[Index] = Field(default=[], max_length=2 * MAX_PUSHES, description="features; name it again for more")
    strength: list[Strength] = Field(
        default=[], max_length=2 * MAX_PUSHES,
        description="of each feature, in units of its own maximum; default 1 (units of activation without an index)",
    )  # fmt: skip
    mode: list[Mode] = Field(
        default=[], max_length=2 * MAX_PUSHES, description="of each feature: add its direction (default), or clamp it"
    )
    where: Where = Field(default="everywhere", description="on every token, or from the prompt's end on")
    strip: bool = Field(default=False, description="at ¼, ½, 1 and 2 times the strength, instead of at 1")
    temperature: float = Field(default=0.7, ge=0, le=5, allow_inf_nan=False, description="0 takes the likeliest token")
    top_p: float = Field(default=0.9, gt=0, le=1, description="drawn from the likeliest that have so much together")
    length: int = Field(default=48, ge=1, le=4096, description="tokens to write, up to the server's limit")
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    chat: bool = Field(default=False, description="put the prompt into the model's chat template")
    turn: list[Turn] = Field(
        default=[], max_length=MAX_TURNS,
        description="of a chat, what was said before the prompt: by the user, by the model, by the user, …",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeredFeature:
    """A pushed feature. `value` is `strength` times its maximum, or the strength itself where none is known."""

    feature_index: int
    mode: Mode
    strength: float
    max_activation: float | None
    value: float
    label: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerPlan:
    """What is asked of the worker, and what the page knows of the features."""

    sae: SAEInfo
    corpus: str | None
    features: tuple[SteeredFeature, ...]
    asked: SteerRequest

    @property
    def key(self) -> tuple[str, datetime, SteerRequest]:
        return self.sae.slug, self.sae.created_at, self.asked


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerReport:
    """What was asked and what the model wrote."""

    slug: str
    corpus: str | None
    features: tuple[SteeredFeature, ...]
    steering: Steering


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnView:
    """A column as the page prints it. `warning` says where the push is too large to mean anything."""

    title: str
    note: str
    column: Column
    is_baseline: bool
    warning: str | None
    same: bool  # as the baseline
    goes_on: str | None  # in a chat: the address at which the user replies to this answer


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerView:
    """A report as the page prints it."""

    columns: tuple[ColumnView, ...]
    overrun: bool  # the time was over before all was written


class SteerCache:
    """The reports finished last, so that a page that was streamed can be shown, and stored, without being run again.

    Steering is decided by its request alone: the seed is part of it.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, datetime, SteerRequest], Steering] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, plan: SteerPlan) -> Steering | None:
        with self._lock:
            return self._kept.get(plan.key)

    def put(self, plan: SteerPlan, steering: Steering) -> None:
        if any(column.finish == "time" for column in steering.columns):
            return  # another time it may get further
        with self._lock:
            self._kept[plan.key] = steering
            while len(self._kept) > REPORTS_KEPT:
                self._kept.popitem(last=False)


def steer_plan(store: Store, points: PointsCache, summary: SAESummary, query: SteerQuery, *, most: int) -> SteerPlan:
    """The request that a query stands for. `most`: tokens that may be written."""
    sae, index = summary.sae, chosen_index(summary, corpus=query.corpus)
    features = steered_features(store, points, summary, query)
    if not query.prompt.strip():
        raise PromptError("The prompt is empty: type the beginning of something that the model should go on with.")
    if not features:
        raise PromptError("No feature is chosen: give the number of one to push.")
    if query.length > most:
        raise PromptError(f"This server writes at most {most} tokens at a time; ask for fewer.")
    return SteerPlan(
        sae=sae,
        corpus=index.corpus.name if index else None,
        features=features,
        asked=SteerRequest(
            prompt=clean_text(query.prompt),
            pushes=tuple(Push(feature_index=f.feature_index, mode=f.mode, value=f.value) for f in features),
            where=query.where,
            doses=DOSES if query.strip else (1.0,),
            temperature=query.temperature,
            top_p=query.top_p,
            n_tokens=query.length,
            seed=query.seed,
            chat=query.chat,
            turns=said_before(query),
        ),
    )


def said_before(query: SteerQuery) -> tuple[str, ...]:
    """The earlier turns of a chat, without those that a form left empty with their answers."""
    turns = [clean_text(said) for said in query.turn]
    exchanges = [turns[at : at + 2] for at in range(0, len(turns), 2)]
    return tuple(said for exchange in exchanges if any(text.strip() for text in exchange) for said in exchange)


def address_of(query: SteerQuery) -> str:
    """The query of the page's address, without what goes without saying."""
    given = query.model_dump(exclude_defaults=True)
    if given.get("strip"):
        given["strip"] = 1
    if given.get("chat"):
        given["chat"] = 1
    lines = [i for i, feature_index in enumerate(query.feature) if feature_index is not None]
    given |= {
        name: [given[name][i] for i in lines if i < len(given[name])] for name in ("feature", "mode") if name in given
    }
    if "strength" in given:
        given["strength"] = [1 if s is None else s for i, s in enumerate(given["strength"]) if i in lines]
    return urlencode(given, doseq=True)


def steered_features(
    store: Store, points: PointsCache, summary: SAESummary, query: SteerQuery
) -> tuple[SteeredFeature, ...]:
    """The features of a query with their maxima and labels; lines of a form that were left empty are none."""
    sae, index = summary.sae, chosen_index(summary, corpus=query.corpus)
    known = points.points(store, index) if index is not None and any(f is not None for f in query.feature) else {}
    chosen = [(at, f) for at, f in enumerate(query.feature) if f is not None]
    labels = store.labels(sae.slug, [f for _, f in chosen])
    found = []
    for at, feature_index in chosen:
        if feature_index >= sae.d_sae:
            raise NotFoundError(
                f'The SAE "{sae.slug}" has no feature {feature_index}; its features are 0 to {sae.d_sae - 1}.'
            )
        strength = query.strength[at] if at < len(query.strength) else None
        mode: Mode = query.mode[at] if at < len(query.mode) else "add"
        strength = 1.0 if strength is None else strength
        if mode == "clamp" and strength < 0:
            raise PromptError(f"Feature {feature_index} cannot be set below 0: no activation is; add it negatively.")
        largest = point.max_activation if (point := known.get(feature_index)) and point.max_activation > 0 else None
        found.append(
            SteeredFeature(
                feature_index=feature_index,
                mode=mode,
                strength=strength,
                max_activation=largest,
                value=strength * (largest or 1.0),
                label=label.text if (label := labels.get(feature_index)) else None,
            )
        )
    return tuple(found)


async def steer_parts(
    inference: Inference, cache: SteerCache, plan: SteerPlan, *, max_seconds: float
) -> AsyncIterator[SteerPart]:
    """The worker's parts as they come; the last is kept."""
    stream = inference.stream(SteerStream(sae=plan.sae, asked=plan.asked, max_seconds=max_seconds))
    async with aclosing(stream) as parts:  # type: ignore[type-var]
        async for part in parts:
            if isinstance(part, Steering):
                cache.put(plan, part)
            yield part


async def steer_report(
    inference: Inference,
    cache: SteerCache,
    plan: SteerPlan,
    *,
    max_seconds: float,
) -> SteerReport:
    """The whole, from the cache or the worker."""
    steering = cache.get(plan)
    if steering is None:
        async with aclosing(steer_parts(inference, cache, plan, max_seconds=max_seconds)) as parts:  # type: ignore[type-var]
            async for part in parts:
                if isinstance(part, Steering):
                    steering = part
    if steering is None:
        raise BusyError("The model worker gave no answer: try again.")
    return reported(plan, steering)


def reported(plan: SteerPlan, steering: Steering) -> SteerReport:
    return SteerReport(slug=plan.sae.slug, corpus=plan.corpus, features=plan.features, steering=steering)


def steer_view(report: SteerReport) -> SteerView:
    """The page's picture of a report."""
    columns = report.steering.columns
    baseline = columns[0]
    return SteerView(
        columns=tuple(
            ColumnView(
                title=column_title(column.kind, column.dose),
                note=_NOTES[column.kind],
                column=column,
                is_baseline=column.kind == "baseline",
                warning=_warning(column),
                same=column.kind != "baseline" and column.token_ids == baseline.token_ids,
                goes_on=_goes_on(report, column),
            )
            for column in columns
        ),
        overrun=any(column.finish == "time" for column in columns),
    )


def _goes_on(report: SteerReport, column: Column) -> str | None:
    """All columns read the same conversation the next time too, so that they differ by the push alone."""
    asked = report.steering.request
    turns = [*asked.turns, asked.prompt, column.text]
    if not asked.chat or len(turns) > MAX_TURNS:
        return None
    query = SteerQuery(
        corpus=report.corpus, turn=turns, feature=[f.feature_index for f in report.features],
        strength=[f.strength for f in report.features], mode=[f.mode for f in report.features], where=asked.where,
        strip=len(asked.doses) > 1, temperature=asked.temperature, top_p=asked.top_p, length=asked.n_tokens,
        seed=asked.seed, chat=True,
    )  # fmt: skip
    return f"/saes/{report.slug}/steer?{address_of(query)}"


_NOTES = {
    "baseline": "the model as it is",
    "steered": "with the push",
    "control": "a push as long, in a random direction",
}
_DOSES = {0.25: "¼", 0.5: "½"}


def column_title(kind: str, dose: float) -> str:
    if kind != "steered" or dose == 1:
        return kind.capitalize()
    return f"Steered × {_DOSES.get(dose, f'{dose:g}')}"


def _warning(column: Column) -> str | None:
    if column.push_ratio is None or column.push_ratio < SWAMPS:
        return None
    return "The push swamps what the model had there: whatever comes out says little of the feature."


async def planned(store: Store, points: PointsCache, summary: SAESummary, query: SteerQuery, *, most: int) -> SteerPlan:
    return await run_in_threadpool(steer_plan, store, points, summary, query, most=most)
