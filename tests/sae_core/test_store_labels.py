"""Labels of others merged into one's own, on both databases."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta

import pytest

from sae_core.errors import InputError, NotFoundError
from sae_core.records import Label
from sae_core.store import Store
from sae_core.store_labels import UNDATED, Merged
from tests.factories import NOW, make_label, make_records, make_sae, make_vocabulary

Refuses = Callable[..., AbstractContextManager[None]]
EARLIER, LATER = NOW - timedelta(days=1), NOW + timedelta(days=1)


@pytest.fixture
def filled(store: Store) -> Store:
    """SAE "demo" with a person's label at 0 and an automatic one at 1."""
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(n_features=30))
    store.add_labels("demo", {0: make_label("spouses")})
    store.add_labels("demo", {1: make_label("the sea", kind="automatic", author="describer", score=0.5)})
    return store


def texts(store: Store) -> dict[tuple[int, str], str]:
    return {(index, label.kind): label.text for index, label in store.all_labels("demo")}


def test_what_is_new_is_added_and_what_is_known_is_the_same(filled: Store) -> None:
    new = [
        (0, make_label("spouses")),
        (0, make_label("about marriage", kind="automatic", author="describer")),
        (2, make_label("numbers", author="ben")),
    ]

    assert filled.merge_labels("demo", new) == Merged(added=2, replaced=0, kept=0, same=1)

    assert texts(filled) == {
        (0, "human"): "spouses",
        (0, "automatic"): "about marriage",
        (1, "automatic"): "the sea",
        (2, "human"): "numbers",
    }
    assert [row.feature.feature_index for row in filled.features("demo", q="numbers", within="label").items] == [2]
    assert filled.merge_labels("demo", new) == Merged(added=0, replaced=0, kept=0, same=3)


@pytest.mark.parametrize(
    ("when", "stays", "expected"),
    [
        (LATER, "their words", Merged(added=0, replaced=1, kept=0, same=0)),
        (EARLIER, "spouses", Merged(added=0, replaced=0, kept=1, same=0)),
        (NOW, "spouses", Merged(added=0, replaced=0, kept=1, same=0)),
        (UNDATED, "spouses", Merged(added=0, replaced=0, kept=1, same=0)),
    ],
)
def test_of_two_the_later_one_stays(filled: Store, when: object, stays: str, expected: Merged) -> None:
    theirs = replace(make_label("their words", author="ben"), created_at=when)

    assert filled.merge_labels("demo", [(0, theirs)]) == expected

    assert texts(filled)[0, "human"] == stays
    again = filled.merge_labels("demo", [(0, theirs)])
    assert (again.added, again.replaced) == (0, 0) and texts(filled)[0, "human"] == stays


def test_the_order_in_which_files_are_merged_does_not_matter(filled: Store) -> None:
    files = [
        [
            (5, replace(make_label(f"{name} {i}", author=name), created_at=NOW + timedelta(hours=hour * (1 + i))))
            for i in (0, 1)
        ]
        for name, hour in (("ana", 3), ("ben", 7), ("eve", 5))
    ]
    found = set()
    for order in itertools.permutations(files):
        filled.delete_label("demo", 5)
        for labels in order:
            filled.merge_labels("demo", labels)
        found.add(texts(filled)[5, "human"])

    assert found == {"ben 1"}


@pytest.mark.parametrize(
    ("index", "label", "error", "words"),
    [
        (300, make_label("x"), NotFoundError, "no feature 300"),
        (7, make_label("  "), InputError, "label of feature 7 is empty"),
        (7, make_label("x", kind="divine"), InputError, "divine"),
    ],
)
def test_one_bad_label_keeps_all_of_them_out(
    index: int, label: Label, error: type[Exception], words: str, filled: Store, refuses: Refuses
) -> None:
    before = filled.all_labels("demo")

    with refuses(error, words):
        filled.merge_labels("demo", [(6, make_label("good")), (index, label)])

    assert filled.all_labels("demo") == before


def test_labels_of_an_unknown_sae_are_refused(store: Store, refuses: Refuses) -> None:
    for call in (lambda: store.all_labels("nobody"), lambda: store.merge_labels("nobody", [])):
        with refuses(NotFoundError, "nobody"):
            call()
