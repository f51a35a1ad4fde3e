"""References as they stand in addresses, and which corpus they mean."""

from pathlib import Path

import pytest

from app.references import Reference, chosen_indexes, pair, reference
from sae_core.errors import InputError, NotFoundError
from sae_core.store import Store
from tests.compared import make_compared_store


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo", Reference(slug="demo")),
        ("demo/0", Reference(slug="demo", feature_index=0)),
        ("demo/12@poems", Reference(slug="demo", feature_index=12, corpus="poems")),
        ("demo-l3.4k_x@a@b/c 中", Reference(slug="demo-l3.4k_x", corpus="a@b/c 中")),
    ],
)
def test_a_reference_reads_as_it_is_written(text: str, expected: Reference) -> None:
    assert reference(f" {text} ") == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text", ["", "/", "demo/", "demo/x", "demo/-1", "demo/1/2", "demo@", "../x", "<b>", "dé", "a" * 400]
)
def test_what_is_no_reference_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InputError) as caught:
        reference(text)
    assert str(caught.value).endswith(".") and "demo/12" in str(caught.value) and len(str(caught.value)) < 300


def test_both_are_of_one_kind() -> None:
    assert pair("demo/1", "other/2@x")[1].corpus == "x"
    for a, b in (("demo", "other/1"), ("other/1", "demo")):
        with pytest.raises(InputError, match="demo/12"):
            pair(a, b)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder: Path = tmp_path_factory.mktemp("references")
    return make_compared_store(f"sqlite:///{folder}/x.db", folder)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("demo", "other", ("poems", "poems")),  # what both have, though it is not what either would be alone
        ("demo@stories", "other", ("stories", "poems")),
        ("other", "demo@stories", ("poems", "stories")),
        ("demo", "demo", ("poems", "stories")),  # the newest two
        ("demo@stories", "demo", ("stories", "poems")),
        ("demo/1", "demo/2", ("poems", "poems")),
        ("demo/1@stories", "demo/2", ("stories", "stories")),
        ("demo/1", "demo/1@poems", ("stories", "poems")),
        ("demo", "wide", ("poems", "songs")),
        ("demo", "unindexed", ("poems", None)),
    ],
)
def test_a_corpus_that_is_not_named_is_the_other_sides(
    store: Store, a: str, b: str, expected: tuple[str | None, str | None]
) -> None:
    first, second = pair(a, b)
    found = chosen_indexes(first, second, of_a=store.sae(first.slug), of_b=store.sae(second.slug))
    assert tuple(index.corpus.name if index else None for index in found) == expected


def test_a_common_corpus_wins_over_the_newest(store: Store, tmp_path: Path) -> None:
    first, second = pair("demo", "other")
    older_first = store.sae("demo")
    older_first = type(older_first)(sae=older_first.sae, indexes=older_first.indexes[::-1])
    found = chosen_indexes(first, second, of_a=older_first, of_b=store.sae("other"))
    assert [index.corpus.name for index in found if index] == ["poems", "poems"]


@pytest.mark.parametrize(("a", "b"), [("other", "other"), ("demo@poems", "demo@poems"), ("other/1", "other/1@poems")])
def test_nothing_is_compared_with_itself(store: Store, a: str, b: str) -> None:
    first, second = pair(a, b)
    with pytest.raises(InputError, match="two different"):
        chosen_indexes(first, second, of_a=store.sae(first.slug), of_b=store.sae(second.slug))


def test_an_unknown_corpus_is_not_found(store: Store) -> None:
    first, second = pair("demo@nope", "other")
    with pytest.raises(NotFoundError, match="nope"):
        chosen_indexes(first, second, of_a=store.sae("demo"), of_b=store.sae("other"))
