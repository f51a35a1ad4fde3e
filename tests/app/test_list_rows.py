"""Features as lists print them, and their evidence, which is kept."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from app import rendering
from app.kept import MADE_AT_ONCE
from app.list_rows import RowsCache, list_rows
from app.rendering import make_environment
from sae_core.records import Example, IndexInfo
from sae_core.store import Store


class Reading:
    """A store that counts whose examples are read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.read: list[int] = []

    def listed_examples(self, slug: str, numbers: list[int], *, corpus: str | None = None) -> dict[int, list[Example]]:
        self.read += numbers
        return self._store.listed_examples(slug, numbers, corpus=corpus)


@pytest.fixture
def index(store: Store) -> IndexInfo:
    return store.index("demo")


def both(store: Store, **asked: Any) -> tuple[Any, Any]:
    """The same page of features with examples and without."""
    return store.features("demo", **asked).items, store.features("demo", **asked, examples=False).items


@pytest.mark.parametrize("alive", [True, False])
def test_kept_rows_are_those_of_the_examples(alive: bool, store: Store, index: IndexInfo) -> None:
    whole, light = both(store, alive=alive)
    expected = list_rows(whole, has_bos=index.corpus.prepend_bos)
    assert any("tokens line" in row.evidence for row in expected)
    assert [row.examples for row in light] == [()] * len(light)
    cache = RowsCache()
    for _ in range(2):
        assert cache.rows(store, index, light) == expected
    reversed_ = cache.rows(store, index, light[::-1])
    assert reversed_ == expected[::-1]


def test_examples_are_read_once_and_no_more_is_kept_than_fits(store: Store, index: IndexInfo) -> None:
    _, light = both(store, alive=False)
    numbers = [row.feature.feature_index for row in light]
    reading, cache = Reading(store), RowsCache(most=2)
    cache.rows(reading, index, light[:2])  # type: ignore[arg-type]
    cache.rows(reading, index, light[:2])  # type: ignore[arg-type]
    assert reading.read == numbers[:2]
    cache.rows(reading, index, light[1:3])  # type: ignore[arg-type]
    assert reading.read == numbers[:3]
    cache.rows(reading, index, light[:1])  # type: ignore[arg-type]
    assert reading.read == [*numbers[:3], numbers[0]]


def test_a_feature_can_be_read_with_some_of_its_examples(store: Store) -> None:
    whole = store.feature("demo", 0)
    few = store.feature("demo", 0, n_top=1)
    assert few == replace(whole, examples=whole.examples[:1]) and len(whole.examples) > 1


def test_another_index_has_rows_of_its_own(store: Store, index: IndexInfo) -> None:
    other = store.index("demo", corpus="stories")
    assert other.index_id != index.index_id
    cache = RowsCache()
    for one in (index, other):
        corpus = one.corpus.name
        whole, light = both(store, corpus=corpus)
        assert cache.rows(store, one, light) == list_rows(whole, has_bos=one.corpus.prepend_bos)


def test_of_many_who_need_a_template_one_compiles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    real = rendering._Templates.compile

    def counted(self: Any, source: str, name: str | None = None, *rest: Any, **options: Any) -> Any:
        compiled.append(name)
        return real(self, source, name, *rest, **options)

    monkeypatch.setattr(rendering._Templates, "compile", counted)
    templates = make_environment(version="1")
    threads = [threading.Thread(target=templates.get_template, args=("feature.html",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == ["feature.html"]
    templates.compile_all()
    assert len(compiled) == len(set(compiled)) == len(templates.list_templates())


def test_few_answers_are_made_at_a_time_and_all_are_given(store: Store) -> None:
    import httpx

    from app.main import create_app
    from app.settings import Settings
    from tests.app.fake_prober import FakeProber

    class Slow:
        """The store, slowly; counts who is in it."""

        inside = most = 0
        lock = threading.Lock()

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def feature(self, *args: Any, **options: Any) -> Any:
            with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
            threading.Event().wait(0.02)
            with self.lock:
                self.inside -= 1
            return store.feature(*args, **options)

        def seen_by(self, viewer: Any) -> "Slow":
            return self

    slow = Slow()

    async def ask() -> list[int]:
        app = create_app(Settings(), store=slow, prober=FakeProber())  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            asked = [client.get(f"/api/saes/demo/features/{i % 4}?corpus=poems&n={i}") for i in range(12)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [200] * 12
    assert slow.most == MADE_AT_ONCE
