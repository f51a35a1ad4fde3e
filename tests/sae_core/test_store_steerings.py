"""Kept steerings on both databases: what goes in comes out, and outlives its SAE."""

import pytest

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


def test_what_is_not_there_is_not_found(store: Store) -> None:
    for steering_id in ("nope", "no\0pe", "😀"):
        with pytest.raises(NotFoundError, match="no such steering"):
            store.steering(steering_id)
    with pytest.raises(NotFoundError):
        store.add_steering("nope", query="", report={})
