"""Shared probes on both databases: what was shared comes back as it was, whatever happens to its SAE."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

import pytest

from sae_core.access_records import Viewer
from sae_core.errors import InputError, NotFoundError
from sae_core.store import Store
from sae_core.store_probes import MAX_CHARACTERS
from tests.factories import NOW, make_sae, make_vocabulary

Refuses = Callable[..., AbstractContextManager[None]]
STATE = {"feature": 12, "pin": [12, 40], "sort": "rarity", "max_density": 0.01, "special": True}


@pytest.fixture
def filled(store: Store) -> Store:
    store.add_sae(make_sae(), make_vocabulary())
    return store


def test_a_shared_probe_round_trip(filled: Store) -> None:
    text = "The <b>king</b>\n海 🙂 "
    probe_id = filled.add_probe("demo", text=text + "\0", state=STATE, author=" Ana  Ó ")
    found = filled.probe(probe_id)
    assert (found.probe_id, found.slug, found.text) == (probe_id, "demo", text + "\ufffd")
    assert (found.state, found.author, found.problem) == (STATE, "Ana Ó", None)
    assert filled.probe(filled.add_probe("demo", text="a", state={})).author == "anonymous"


def test_ids_cannot_be_guessed_and_the_newest_come_first(filled: Store) -> None:
    ids = [filled.add_probe("demo", text=f"text {number}", state={}) for number in range(20)]
    assert len({probe_id[:8] for probe_id in ids}) == 20 and all(len(probe_id) == 14 for probe_id in ids)
    assert [probe.text for probe in filled.probes(limit=3)] == ["text 19", "text 18", "text 17"]


def test_it_outlives_its_sae_and_is_not_taken_for_another_ones(filled: Store) -> None:
    probe_id = filled.add_probe("demo", text="the king", state=STATE)
    filled.delete_sae("demo")
    found = filled.probe(probe_id)
    assert found.text == "the king" and "has been deleted" in (found.problem or "")
    filled.add_sae(make_sae(created_at=NOW + timedelta(days=1)), make_vocabulary())
    assert "has been replaced" in (filled.probe(probe_id).problem or "")
    filled.delete_sae("demo")
    filled.add_sae(make_sae(), make_vocabulary())
    assert filled.probe(probe_id).problem is None
    assert filled.probes()[0].problem is None


def test_probes_of_saes_that_are_hidden_or_not_listed_are_so_too(filled: Store, refuses: Refuses) -> None:
    probe_id = filled.add_probe("demo", text="a secret", state={})
    reader = filled.seen_by(Viewer(name="r", sees_everything=False, action="", request_id=""))
    assert [probe.probe_id for probe in reader.probes()] == [probe_id]
    filled.set_visibility("demo", "unlisted")
    assert reader.probes() == [] and reader.probe(probe_id).text == "a secret"
    filled.set_visibility("demo", "private")
    assert reader.probes() == []
    with refuses(NotFoundError, "no such shared probe"):
        reader.probe(probe_id)
    assert filled.probe(probe_id).text == "a secret" and len(filled.probes()) == 1


def test_what_cannot_be_shared_is_refused(filled: Store, refuses: Refuses) -> None:
    with refuses(NotFoundError, "nope"):
        filled.add_probe("nope", text="a", state={})
    with refuses(InputError, "empty"):
        filled.add_probe("demo", text=" \n", state={})
    with refuses(InputError, f"{MAX_CHARACTERS:,}"):
        filled.add_probe("demo", text="a" * (MAX_CHARACTERS + 1), state={})
    with refuses(InputError, "pin fewer"):
        filled.add_probe("demo", text="a", state={"pin": list(range(5000))})
    assert filled.probes() == []


def test_a_deleted_probe_is_gone(filled: Store, refuses: Refuses) -> None:
    probe_id = filled.add_probe("demo", text="a", state={})
    filled.delete_probe(probe_id)
    for call in (filled.probe, filled.delete_probe):
        with refuses(NotFoundError, "no such shared probe"):
            call(probe_id)
