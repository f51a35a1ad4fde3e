"""Labels' vectors in the store: kept in step with the labels, ranked exactly, of one model at a time."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from sae_core import store_meaning
from sae_core.errors import ConfigError
from sae_core.explain.records import EmbeddingModel
from sae_core.labels import AUTHOR
from sae_core.store import Store
from tests.factories import N_FEATURES, make_label, make_records, make_store

MODEL = EmbeddingModel(model_name="small", revision="abc", width=16)
RNG = np.random.default_rng(0)
QUERY = RNG.normal(size=16)


@pytest.fixture
def filled(database_url: str) -> Iterator[Store]:
    store = make_store(database_url)
    yield store
    store.close()


def vector(number: int) -> np.ndarray:
    drawn = np.random.default_rng(number).normal(size=16)
    return (drawn / np.linalg.norm(drawn)).astype("<f2")


def embed(store: Store, model: EmbeddingModel = MODEL) -> dict[int, str]:
    texts = store.labels_without_vectors("demo")
    store.start_label_vectors("demo", model)
    store.add_label_vectors("demo", model, texts, [vector(number).tobytes() for number in texts])
    return texts


def n_vectors(store: Store) -> tuple[int, int]:
    known = store.label_vectors("demo")
    assert known is not None
    return known.n_vectors, known.n_missing


def test_features_are_ranked_by_the_cosine_with_every_label(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_meaning, "BLOCK", 3)
    assert filled.label_vectors("demo") is None
    filled.add_labels("demo", {number: make_label(f"label {number}") for number in range(0, N_FEATURES, 2)})
    texts = embed(filled)
    query = (QUERY / np.linalg.norm(QUERY)).astype("<f2")
    densities = {point.feature_index: point.density for point in filled.feature_points("demo")}

    cosines = {number: float(vector(number).astype(np.float32) @ query.astype(np.float32)) for number in texts}
    alive = sorted((number for number in texts if densities[number] > 0), key=lambda number: -cosines[number])

    found = filled.features_by_meaning("demo", query.tobytes(), limit=8)
    assert [row.feature.feature_index for row, _ in found] == alive[:8]
    assert [cosine for _, cosine in found] == pytest.approx([cosines[number] for number in alive[:8]], abs=1e-6)
    assert found[0][0].feature.label is not None
    everything = filled.features_by_meaning("demo", query.tobytes(), alive=False, limit=1000)
    assert len(everything) == len(texts) == n_vectors(filled)[0]
    dense = filled.features_by_meaning("demo", query.tobytes(), min_density=0.05, limit=1000)
    assert {row.feature.feature_index for row, _ in dense} == {n for n in texts if densities[n] >= 0.05} != set(alive)


def test_a_vector_goes_with_the_label_that_it_is_of(filled: Store) -> None:
    filled.add_labels(
        "demo", {number: make_label(f"label {number}", kind="automatic", author=AUTHOR) for number in range(12)}
    )
    n = len(embed(filled))
    assert n_vectors(filled) == (n, 0)

    filled.add_labels("demo", {3: make_label("another"), 4: make_label("label 4")})  # the second reads as before
    assert n_vectors(filled) == (n - 1, 1) and filled.labels_without_vectors("demo") == {3: "another"}
    filled.add_labels("demo", {3: make_label("unseen", kind="pattern")})  # is not the one that is shown
    assert n_vectors(filled) == (n - 1, 1)
    embed(filled)
    filled.delete_label("demo", 3)
    assert filled.labels_without_vectors("demo") == {3: "label 3"}
    embed(filled)
    filled.merge_labels("demo", [(5, make_label("from a file"))])
    assert filled.labels_without_vectors("demo", limit=1) == {5: "from a file"}
    embed(filled)
    filled.add_index(make_records("demo"))  # whose features have no automatic labels any more
    shown = filled.labels("demo", range(N_FEATURES))
    assert n_vectors(filled) == (len(shown) - 1, 1) and 1 < len(shown) < n
    assert filled.labels_without_vectors("demo") == {3: "unseen"}  # which is shown now


def test_a_label_that_changed_while_it_was_made_a_vector_of_keeps_none(filled: Store) -> None:
    filled.add_labels("demo", {1: make_label("before"), 2: make_label("stays")})
    texts = {number: filled.labels("demo", [number])[number].text for number in (1, 2)}
    filled.start_label_vectors("demo", MODEL)
    filled.add_labels("demo", {1: make_label("after")})

    assert filled.add_label_vectors("demo", MODEL, texts, [vector(1).tobytes(), vector(2).tobytes()]) == 1

    assert filled.labels_without_vectors("demo")[1] == "after" and 2 not in filled.labels_without_vectors("demo")


def test_another_model_or_revision_begins_anew(filled: Store) -> None:
    filled.add_labels("demo", {number: make_label(f"label {number}") for number in range(6)})
    n = len(embed(filled))
    filled.start_label_vectors("demo", MODEL)
    assert n_vectors(filled) == (n, 0)

    newer = dataclasses.replace(MODEL, revision="def")
    filled.start_label_vectors("demo", newer)

    assert n_vectors(filled) == (0, n)
    known = filled.label_vectors("demo")
    assert known is not None and known.model == newer
    with pytest.raises(ConfigError, match="another model"):
        filled.add_label_vectors("demo", MODEL, {1: "label 1"}, [vector(1).tobytes()])
    filled.delete_sae("demo")
    with filled._database.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM label_embeddings").scalar() == 0
