"""Lists on both databases: what people put together stays so, whoever else writes and whatever happens to SAEs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import timedelta

import pytest

from sae_core.errors import ConflictError, InputError, NotFoundError
from sae_core.records import FeatureList
from sae_core.store import Store
from sae_core.store_lists import MAX_CHARACTERS, MAX_ITEMS
from tests.factories import NOW, make_label, make_labels, make_records, make_sae, make_vocabulary

Refuses = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def filled(store: Store) -> Store:
    """SAE "demo" with 30 features on "stories", and labels."""
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(n_features=30))
    store.add_labels("demo", make_labels())
    return store


def numbers(found: FeatureList) -> list[int]:
    return [item.feature_index for item in found.items]


def ids(found: FeatureList) -> list[int]:
    return [item.item_id for item in found.items]


def made(store: Store, *features: int) -> str:
    list_id = store.add_list(title="Spouses")
    for feature_index in features:
        store.add_list_item(list_id, "demo", feature_index)
    return list_id


def test_a_list_round_trip(filled: Store) -> None:
    list_id = filled.add_list(title=" Spouses\n at sea ", description="Whom\r\nthey marry ", author=" Ana  Ó ")
    filled.add_list_item(list_id, "demo", 0, note="see <b> 中\0", author="ben")
    filled.add_list_item(list_id, "demo", 4, corpus="stories")
    found = filled.feature_list(list_id)
    assert (found.title, found.description, found.author) == ("Spouses at sea", "Whom\nthey marry", "Ana Ó")
    assert found.version == 3 and found.created_at <= found.updated_at
    first, second = found.items
    assert (first.slug, first.feature_index, first.corpus, first.note) == ("demo", 0, None, "see <b> 中\ufffd")
    assert (first.author, first.label_then, first.problem) == ("ben", "words for a spouse", None)
    assert (second.corpus, second.author, second.label_then, second.note) == ("stories", "anonymous", None, "")
    (row,) = filled.features("demo", q="0").items
    assert (first.feature, first.examples) == (filled.feature("demo", 0).feature, row.examples)
    assert first.measured_on == filled.index("demo").corpus
    assert filled.lists()[0].n_items == 2


def test_ids_cannot_be_guessed_and_lists_come_last_changed_first(filled: Store) -> None:
    made_lists = [made(filled) for _ in range(20)]
    assert len(set(made_lists)) == 20 and {len(list_id) for list_id in made_lists} == {14}
    filled.add_list_item(made_lists[3], "demo", 1)
    assert [found.list_id for found in filled.lists()][:2] == [made_lists[3], made_lists[19]]
    assert [found.n_items for found in filled.lists()] == [1] + [0] * 19
    for limit in (0, 1, 7, 50):
        assert filled.lists(limit=limit) == filled.lists()[:limit]


def test_order_changes_and_stays(filled: Store) -> None:
    list_id = made(filled, 5, 6, 7, 8)
    a, b, c, d = ids(filled.feature_list(list_id))
    filled.move_list_item(list_id, c, by=-1)
    assert numbers(filled.feature_list(list_id)) == [5, 7, 6, 8]
    filled.move_list_item(list_id, a, by=-1)
    filled.move_list_item(list_id, a, by=99)
    assert numbers(filled.feature_list(list_id)) == [7, 6, 8, 5]
    version = filled.feature_list(list_id).version
    filled.order_list(list_id, [d, c, b, a], version=version)
    filled.delete_list_item(list_id, c)
    filled.add_list_item(list_id, "demo", 9)
    assert numbers(filled.feature_list(list_id)) == [8, 6, 5, 9]


def test_an_order_of_an_older_list_is_refused(filled: Store, refuses: Refuses) -> None:
    list_id = made(filled, 5, 6)
    seen = filled.feature_list(list_id)
    filled.add_list_item(list_id, "demo", 7)
    with refuses(ConflictError, "reload it"):
        filled.order_list(list_id, ids(seen)[::-1], version=seen.version)
    with refuses(ConflictError, "reload it"):
        filled.change_list(list_id, title="x", description="", version=seen.version)
    assert numbers(filled.feature_list(list_id)) == [5, 6, 7]
    now = filled.feature_list(list_id)
    for wrong in (ids(seen), [*ids(now), 99], [ids(now)[0]] * 3):
        with refuses(InputError, "every item"):
            filled.order_list(list_id, wrong, version=now.version)
    assert filled.feature_list(list_id) == now


def test_a_note_that_somebody_changed_meanwhile_is_not_overwritten(filled: Store, refuses: Refuses) -> None:
    list_id = made(filled, 5)
    (item,) = filled.feature_list(list_id).items
    filled.change_list_note(list_id, item.item_id, note="mine", author="ana", version=item.version)
    with refuses(ConflictError, "ana has changed this note"):
        filled.change_list_note(list_id, item.item_id, note="other", author="ben", version=item.version)
    (changed,) = filled.feature_list(list_id).items
    assert (changed.note, changed.author, changed.version) == ("mine", "ana", 2)
    assert changed.created_at == item.created_at and changed.updated_at > item.updated_at


def test_people_who_add_at_once_lose_nothing(filled: Store) -> None:
    list_id = made(filled)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: filled.add_list_item(list_id, "demo", n, note=f"note {n}"), range(30)))
    found = filled.feature_list(list_id)
    assert sorted(numbers(found)) == list(range(30)) and found.version == 31
    assert {item.feature_index: item.note for item in found.items} == {n: f"note {n}" for n in range(30)}


def test_of_two_who_order_at_once_one_is_refused(filled: Store) -> None:
    list_id = made(filled, 1, 2, 3)
    seen = filled.feature_list(list_id)
    orders = [ids(seen)[::-1], [ids(seen)[1], ids(seen)[0], ids(seen)[2]]]

    def order(wanted: list[int]) -> bool:
        try:
            filled.order_list(list_id, wanted, version=seen.version)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        succeeded = list(pool.map(order, orders))
    assert sorted(succeeded) == [False, True]
    assert ids(filled.feature_list(list_id)) == orders[succeeded.index(True)]


def test_a_feature_is_in_a_list_once_for_each_corpus(filled: Store, refuses: Refuses) -> None:
    list_id = made(filled, 5)
    with refuses(ConflictError, "in this list already"):
        filled.add_list_item(list_id, "demo", 5)
    filled.add_list_item(list_id, "demo", 5, corpus="stories")
    assert numbers(filled.feature_list(list_id)) == [5, 5]


def test_items_of_a_deleted_sae_say_so_and_come_back_with_it(filled: Store) -> None:
    filled.add_sae(make_sae("other"), make_vocabulary())
    filled.add_index(make_records("other", n_features=30))
    list_id = made(filled, 0, 5)
    filled.add_list_item(list_id, "other", 7)
    filled.delete_sae("demo")
    gone, also_gone, there = filled.feature_list(list_id).items
    assert gone.problem == 'The SAE "demo" has been deleted, and with it what this feature was.'
    assert (gone.label_then, gone.feature, gone.examples, gone.measured_on) == ("words for a spouse", None, (), None)
    assert also_gone.problem and there.problem is None and there.feature is not None
    filled.add_sae(make_sae(), make_vocabulary())
    assert "not indexed yet" in (filled.feature_list(list_id).items[0].problem or "")
    filled.add_index(make_records(n_features=30))
    assert [item.problem for item in filled.feature_list(list_id).items] == [None] * 3


def test_items_of_a_replaced_sae_do_not_point_at_the_new_one(filled: Store) -> None:
    list_id = made(filled, 0)
    filled.add_sae(make_sae(created_at=NOW + timedelta(days=1)), make_vocabulary())
    filled.add_index(make_records(n_features=30))
    (item,) = filled.feature_list(list_id).items
    assert item.problem == 'The SAE "demo" has been replaced since this was added: its feature 0 is another.'
    assert item.feature is None and item.label_then == "words for a spouse"
    assert filled.lists_with("demo", 0) == []
    filled.add_list_item(list_id, "demo", 0)  # the new SAE's feature is not in the list yet
    assert [found.list_id for found in filled.lists_with("demo", 0)] == [list_id]


def test_a_new_index_is_shown_where_no_corpus_was_asked_for(filled: Store) -> None:
    list_id = made(filled, 5)
    filled.add_list_item(list_id, "demo", 5, corpus="stories")
    filled.add_index(make_records(corpus="poems", n_features=5, created_at=NOW + timedelta(minutes=1)))
    newest, asked = filled.feature_list(list_id).items
    assert newest.problem == 'The index on "poems" does not have this feature.'
    assert asked.measured_on is not None and asked.measured_on.name == "stories"


def test_what_cannot_be_is_refused_in_a_sentence(filled: Store, refuses: Refuses) -> None:
    list_id = made(filled, 5)
    (item_id,) = ids(filled.feature_list(list_id))
    for nothing in ("", " \n", "\u200b\u202e"):
        with refuses(InputError, "no title"):
            filled.add_list(title=nothing)
    for name, most in MAX_CHARACTERS.items():
        with refuses(InputError, name, f"{most + 1:,}"):
            long = "x" * (most + 1)
            if name == "note":
                filled.change_list_note(list_id, item_id, note=long)
            else:
                filled.add_list(**({"title": "t"} | {"author" if name == "name" else name: long}))
    with refuses(NotFoundError, "features are 0 to 299"):
        filled.add_list_item(list_id, "demo", 300)
    with refuses(NotFoundError, "not on"):
        filled.add_list_item(list_id, "demo", 5, corpus="nope")
    with refuses(NotFoundError, 'no SAE "nope"'):
        filled.add_list_item(list_id, "nope", 5)
    for change in (
        lambda unknown: filled.feature_list(unknown),
        lambda unknown: filled.delete_list(unknown),
        lambda unknown: filled.change_list(unknown, title="t", description=""),
        lambda unknown: filled.add_list_item(unknown, "demo", 5),
        lambda unknown: filled.move_list_item(unknown, item_id, by=1),
        lambda unknown: filled.order_list(unknown, [], version=1),
    ):
        with refuses(NotFoundError, "no such list"):
            change("nope\0")
    other = made(filled)
    for change in (
        lambda: filled.delete_list_item(other, item_id),
        lambda: filled.move_list_item(other, item_id, by=1),
        lambda: filled.change_list_note(other, item_id, note=""),
    ):
        with refuses(NotFoundError, "not in the list any more"):
            change()
    assert len(filled.feature_list(list_id).items) == 1


def test_a_full_list_takes_no_more(filled: Store, refuses: Refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_core.store_lists.MAX_ITEMS", 2)
    list_id = made(filled, 1, 2)
    with refuses(InputError, "at most 2 features"):
        filled.add_list_item(list_id, "demo", 3)
    assert MAX_ITEMS >= 100


def test_a_deleted_list_takes_its_items_along(filled: Store) -> None:
    list_id, other = made(filled, 1, 2), made(filled, 1)
    filled.delete_list(list_id)
    assert [found.list_id for found in filled.lists()] == [other]
    assert [found.list_id for found in filled.lists_with("demo", 1)] == [other]
    assert filled.lists_with("demo", 2) == []
    with pytest.raises(NotFoundError):
        filled.feature_list(list_id)


def test_without_a_persons_label_the_automatic_one_is_shown_again(filled: Store) -> None:
    guess = make_label("guess", kind="automatic", author="describer", score=0.5)
    filled.add_labels("demo", {5: guess})
    filled.add_labels("demo", {5: make_label("mine")})
    detail = filled.feature("demo", 5)
    assert detail.feature.label == make_label("mine") and detail.labels == (make_label("mine"), guess)
    for _ in range(2):  # the second time there is nothing to remove
        filled.delete_label("demo", 5)
        detail = filled.feature("demo", 5)
        assert detail.feature.label == guess and detail.labels == (guess,)
    assert filled.feature("demo", 0).feature.label == make_labels()[0]
    filled.delete_label("demo", 0)
    assert filled.feature("demo", 0).feature.label is None
