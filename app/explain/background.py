"""Labelling that a page asked for: goes on in the server while the page shows that it does, and then what came of it.

A feature at a time for each of them; a language model is asked by the same code as on the command line.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from app.explain.command import endpoint_of
from app.settings import Settings
from sae_core.errors import BusyError, SaescopeError
from sae_core.explain.bench import Bench, pattern_scores
from sae_core.explain.client import Client
from sae_core.explain.job import Labelling
from sae_core.explain.records import Embedded
from sae_core.store import Store

MOST_AT_ONCE = 8  # features that are being labelled; one more is answered with 503
REMEMBERED = 500  # features whose last outcome is kept

By = Literal["model", "patterns"]
Key = tuple[str, int, str | None]  # slug, feature, corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a page asked for. `problem` says why it failed; both None and not running: it is done."""

    by: By
    is_running: bool
    problem: str | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Background:
    """The labelling that goes on in this server."""

    def __init__(self, settings: Settings, store: Store) -> None:
        """`store`: nobody's, for what no one is said to have written (`keep_vectors`)."""
        self._settings = settings
        self._store = store
        self._works: dict[Key, Work] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    @property
    def model(self) -> str | None:
        """The language model that can be asked, if one is set."""
        return self._settings.llm_model if self._settings.llm_base_url and self._settings.llm_model else None

    def work(self, slug: str, feature_index: int, corpus: str | None) -> Work | None:
        return self._works.get((slug, feature_index, corpus))

    def start(self, store: Store, slug: str, feature_index: int, corpus: str | None, *, by: By) -> Work:
        """Begins, unless it is already going on; `store` as whoever asks sees it, so that the audit trail names them.
        Raises BusyError where there is too much, ConfigError without a model to ask."""
        key = (slug, feature_index, corpus)
        if key in self._tasks:
            return self._works[key]
        if by == "model":
            endpoint_of(self._settings)
        if len(self._tasks) >= MOST_AT_ONCE:
            raise BusyError("This server is labelling enough features for now; try again in a moment.")
        while len(self._works) >= REMEMBERED:
            self._works.pop(next(iter(self._works)))
        work = self._works[key] = Work(by=by, is_running=True)
        task = self._tasks[key] = asyncio.create_task(self._run(store, key, by))
        task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return work

    def keep_vectors(self, slug: str, made: Embedded, texts: Mapping[int, str], vectors: Sequence[bytes]) -> None:
        """Vectors of labels that a search made on its way: nothing that whoever searched has changed."""
        self._store.add_label_vectors(slug, made.model, texts, vectors)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, store: Store, key: Key, by: By) -> None:
        problem = None
        try:
            await (self._ask(store, key) if by == "model" else asyncio.to_thread(self._fit, store, key))
        except SaescopeError as error:
            problem = str(error)
        except Exception:
            self._works[key] = Work(by=by, is_running=False, problem="It failed; the server's log says why.")
            raise
        self._works[key] = Work(by=by, is_running=False, problem=problem)

    async def _ask(self, store: Store, key: Key) -> None:
        slug, feature_index, corpus = key
        bench = await asyncio.to_thread(Bench, store, slug, corpus=corpus)
        async with Client(endpoint_of(self._settings)) as client:
            job = Labelling(bench, client)
            await job.run([feature_index])
        for problem in job.progress.problems:
            raise SaescopeError(problem)

    def _fit(self, store: Store, key: Key) -> None:
        slug, feature_index, corpus = key
        bench = Bench(store, slug, corpus=corpus)
        label, scores = pattern_scores(bench, feature_index)
        if label is not None:
            store.add_labels(slug, {feature_index: label})
        store.add_scores(slug, scores, corpus=corpus)
        if not scores:
            raise SaescopeError("There are too few texts in which this feature fires to test a label on.")
