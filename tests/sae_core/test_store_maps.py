"""Maps in the store on both databases: kept with the SAE, replaced whole, and what they are made from."""

import struct
from dataclasses import replace

import pytest
import sqlalchemy as sa

from sae_core.errors import InputError, NotFoundError
from sae_core.records import FeatureMap, Neighbours
from sae_core.schema import maps
from sae_core.store import Store
from tests.factories import N_FEATURES, fill_store, make_label, make_map, make_records, make_sae, make_vocabulary


def test_a_map_comes_back_and_a_new_one_replaces_it(store: Store) -> None:
    fill_store(store)
    assert store.feature_map("demo") == make_map()
    assert store.feature_map("unindexed") is None
    store.add_map("demo", make_map(seed=2))
    assert store.feature_map("demo") == make_map(seed=2)
    with store._database.reading() as connection:
        assert len(connection.execute(sa.select(maps.c.places)).scalar_one()) == 4 * N_FEATURES


def test_a_map_is_its_saes(store: Store) -> None:
    fill_store(store)
    store.add_sae(make_sae(weights_path="/elsewhere"), make_vocabulary())  # the same, moved
    store.add_index(make_records(corpus="stories"))  # indexed again
    assert store.feature_map("demo") == make_map()
    store.delete_sae("demo")
    with store._database.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(maps)).scalar_one() == 0


@pytest.mark.parametrize("made", [make_map(n=N_FEATURES - 1), replace(make_map(), xs=(65536, *make_map().xs[1:]))])
def test_what_is_no_map_of_this_sae_is_refused(store: Store, made: FeatureMap) -> None:
    fill_store(store)
    with pytest.raises(InputError):
        store.add_map("demo", made)
    with pytest.raises(NotFoundError):
        store.add_map("nope", make_map())
    assert store.feature_map("demo") == make_map()


def test_neighbours_are_those_of_every_feature(demo_store: Store) -> None:
    found = demo_store.neighbours("demo")
    assert (found.d_sae, found.per_feature) == (N_FEATURES, 3)
    table = list(struct.iter_unpack("<If", found.packed))
    for number in (0, 7, N_FEATURES - 1):
        nearest = demo_store.feature("demo", number).feature.nearest
        assert table[3 * number : 3 * number + 3] == [
            (other.feature_index, pytest.approx(other.cosine)) for other in nearest
        ]


def test_an_index_without_neighbours_says_what_to_run(store: Store) -> None:
    fill_store(store)
    records = make_records(corpus="stories")
    store.add_index(replace(records, features=[replace(feature, nearest=b"") for feature in records.features]))
    with pytest.raises(InputError, match="saescope index demo --corpus … --nearest-features 20"):
        store.neighbours("demo", corpus="stories")
    assert Neighbours(d_sae=0, packed=b"").per_feature == 0


def test_label_texts_are_the_labels_that_are_shown(store: Store) -> None:
    fill_store(store)
    store.add_labels("demo", {1: make_label("a person's"), 299: make_label("last")})
    for kind in ("pattern", "model"):
        store.add_labels("demo", {2: make_label(f"a {kind}'s", kind=kind), 5: make_label(f"a {kind}'s", kind=kind)})
    found = {label.feature_index: label for label in store.label_texts("demo")}
    shown = store.labels("demo", range(N_FEATURES))
    assert list(found) == sorted(shown)
    assert {number: label.text for number, label in found.items()} == {i: label.text for i, label in shown.items()}
    assert found[1].text == "a person's" and found[1].confidence == 0.875  # that of the automatic one
    assert found[2].text == found[5].text == "a model's"
    assert found[0].confidence is None


@pytest.mark.parametrize("within", [None, "promotes", "examples", "label"])
@pytest.mark.parametrize("q", ["king", "whale sea", "12", '"Dr Mr"', "nothing-like-this", '" "', " "])
def test_matching_features_are_those_of_the_list(demo_store: Store, q: str, within: str | None) -> None:
    listed: list[int] = []
    if q.strip():
        page = demo_store.features("demo", q=q, within=within, alive=False, limit=1000)
        listed = [row.feature.feature_index for row in page.items]
    assert demo_store.matching_features("demo", q, within=within, limit=1000) == listed
    assert demo_store.matching_features("demo", q, within=within, limit=2) == listed[:2]


def test_a_search_that_cannot_be_is_said(demo_store: Store) -> None:
    with pytest.raises(InputError, match="A search looks in"):
        demo_store.matching_features("demo", "king", within="nowhere", limit=10)
    with pytest.raises(InputError, match="at most 200 characters"):
        demo_store.matching_features("demo", "k" * 201, limit=10)
