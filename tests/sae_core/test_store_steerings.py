"""Kept steerings on both databases: what goes in comes out, and outlives its SAE."""

import pytest

from sae_core.access_records import Viewer, Visibility
from sae_core.errors import NotFoundError
from sae_core.store import Store
from tests.factories import NOW, make_sae, make_vocabulary

REPORT = {"text": "中 <b> 😀", "numbers": [0.5, None, 3], "nested": {"a": True}}


def test_a_steering_is_kept_as_it_was(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    first, second = (
        store.add_steering("demo", query="prompt=a&feature=1", report=REPORT, author=a) for a in (" Ana ", "")
    )
    assert first != second and len(first) >= 14
    found = store.steering(first)
    assert (found.slug, found.query, found.report) == ("demo", "prompt=a&feature=1", REPORT)
    assert (found.author, store.steering(second).author) == ("Ana", "anonymous")
    assert found.sae_created_at == store.sae("demo").sae.created_at
    assert found.created_at > NOW
    store.delete_sae("demo")
    assert store.steering(first) == found


def test_the_newest_come_first_and_go_when_they_are_deleted(store: Store) -> None:
    for slug in ("demo", "other"):
        store.add_sae(make_sae(slug), make_vocabulary())
    made = [store.add_steering(slug, query=f"prompt={slug}", report=REPORT) for slug in ("demo", "other", "demo")]
    assert [s.steering_id for s in store.steerings()] == made[::-1]
    assert [s.steering_id for s in store.steerings(slug="demo", limit=1)] == made[2:]
    assert store.steerings(slug="other")[0].query == "prompt=other" and not store.steerings(slug="no\0pe")
    store.delete_steering(made[2])
    store.delete_sae("other")
    assert [s.steering_id for s in store.steerings()] == made[1::-1]
    with pytest.raises(NotFoundError, match="no such steering"):
        store.delete_steering(made[2])


@pytest.mark.parametrize(("visibility", "by_name", "listed"), [("public", 1, 1), ("unlisted", 1, 0), ("private", 0, 0)])
def test_those_of_an_sae_are_seen_by_whoever_sees_it(
    store: Store, visibility: Visibility, by_name: int, listed: int
) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    steering_id = store.add_steering("demo", query="", report=REPORT)
    store.set_visibility("demo", visibility)
    reader = store.seen_by(Viewer(name="rob", sees_everything=False, action=""))
    assert (len(reader.steerings(slug="demo")), len(reader.steerings())) == (by_name, listed)
    if not by_name:
        with pytest.raises(NotFoundError):
            reader.delete_steering(steering_id)
    assert len(store.steerings()) == 1


def test_what_is_not_there_is_not_found(store: Store) -> None:
    for steering_id in ("nope", "no\0pe", "😀"):
        with pytest.raises(NotFoundError, match="no such steering"):
            store.steering(steering_id)
    with pytest.raises(NotFoundError):
        store.add_steering("nope", query="", report={})
