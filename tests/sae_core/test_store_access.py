"""Tokens, sessions, who sees which SAE, and the audit trail, on both databases."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

import pytest
import sqlalchemy as sa

from sae_core.access_records import Viewer
from sae_core.errors import ConfigError, ConflictError, NotFoundError
from sae_core.schema import sessions, tokens
from sae_core.store import Store
from tests.factories import NOW, fill_store, make_label, make_records, make_sae, make_vocabulary

Refuses = Callable[..., AbstractContextManager[None]]
GUEST = Viewer(name="gus", sees_everything=False, action="GET /")
EDITOR = Viewer(name="edda", sees_everything=True, action="PUT /label", request_id="r1")


def everything_stored(store: Store) -> str:
    with store._database.reading() as connection:
        return repr([connection.execute(sa.select(table)).all() for table in (tokens, sessions)])


def test_a_token_opens_until_it_is_revoked_and_is_stored_as_a_hash(store: Store, refuses: Refuses) -> None:
    secret = store.accounts.create_token("  Ana \n Ó ", "editor")
    assert re.fullmatch(r"saescope_[\w-]{43}", secret)
    found = store.accounts.by_token(secret)
    assert found is not None and (found.name, found.role, found.revoked_at) == ("Ana Ó", "editor", None)
    session = store.accounts.begin_session(secret, days=1)
    assert session is not None and store.accounts.by_session(session, days=1) == found
    stored = everything_stored(store)
    assert secret not in stored and session not in stored and secret.removeprefix("saescope_") not in stored
    for wrong in ("", "x", secret[:-1], secret.upper(), session, "\ud800"):
        assert store.accounts.by_token(wrong) is None and store.accounts.begin_session(wrong, days=1) is None
    assert store.accounts.by_session(secret, days=1) is None
    with refuses(ConflictError, "Ana Ó", "revoke"):
        store.accounts.create_token("Ana Ó", "reader")
    store.accounts.revoke_token("Ana Ó")
    assert store.accounts.by_token(secret) is None and store.accounts.by_session(session, days=1) is None
    assert [(token.name, token.revoked_at is None) for token in store.accounts.tokens()] == [("Ana Ó", False)]
    with refuses(NotFoundError, "saescope token list"):
        store.accounts.revoke_token("Ana Ó")
    assert store.accounts.create_token("Ana Ó", "reader") != secret


def test_a_token_needs_a_name_and_a_known_role(store: Store, refuses: Refuses) -> None:
    with refuses(ConfigError, "reader, editor, admin"):
        store.accounts.create_token("ana", "owner")  # type: ignore[arg-type]
    with refuses(ConfigError, "needs a name"):
        store.accounts.create_token(" ", "reader")


def test_a_session_ends_when_it_is_ended_and_when_its_time_is_over(store: Store) -> None:
    secret = store.accounts.create_token("ana", "reader")
    ended, over, other = (store.accounts.begin_session(secret, days=days) for days in (1, 1e-9, 1))
    assert ended and over and other
    store.accounts.end_session(ended)
    assert store.accounts.by_session(ended, days=1) is None and store.accounts.by_session(over, days=1) is None
    assert store.accounts.by_session(other, days=1) is not None


def test_who_does_not_see_everything_finds_no_private_sae_and_unlisted_ones_by_name(store: Store) -> None:
    fill_store(store)
    store.add_sae(make_sae("hidden"), make_vocabulary())
    store.add_index(make_records("hidden"))
    list_id = store.add_list(title="Both")
    for slug in ("demo", "hidden"):
        store.add_list_item(list_id, slug, 0, note=f"of {slug}")
    store.set_visibility("hidden", "private")
    store.set_visibility("unindexed", "unlisted")
    guest, editor = store.seen_by(GUEST), store.seen_by(EDITOR)
    assert [s.sae.slug for s in guest.saes()] == ["demo"]
    assert {s.sae.slug: s.visibility for s in editor.saes()} == {
        "unindexed": "unlisted", "demo": "public", "hidden": "private",
    }  # fmt: skip
    assert guest.sae("unindexed").visibility == "unlisted"
    reads: list[Callable[[str], object]] = [
        guest.sae, guest.index, guest.features, guest.feature_points, guest.random_feature, guest.vocabulary,
        lambda slug: guest.feature(slug, 0), lambda slug: guest.labels(slug, [0]),
        lambda slug: guest.feature_stats(slug, [0]), lambda slug: guest.feature_rows(slug, [0]),
        lambda slug: guest.lists_with(slug, 0), lambda slug: guest.add_labels(slug, {0: make_label()}),
    ]  # fmt: skip
    for read in reads:
        with pytest.raises(NotFoundError) as unknown:
            read("nobody")
        with pytest.raises(NotFoundError) as hidden:
            read("hidden")
        assert str(hidden.value) == str(unknown.value).replace("nobody", "hidden")
        read("demo")
    assert [item.slug for item in guest.feature_list(list_id).items] == ["demo"]
    assert [item.note for item in editor.feature_list(list_id).items] == ["of demo", "of hidden"]
    assert (guest.lists()[0].n_items, editor.lists()[0].n_items) == (1, 2)
    assert (guest.lists(limit=1)[0].n_items, editor.lists(limit=1)[0].n_items) == (1, 2)


def test_an_sae_trained_again_stays_as_visible_as_it_was(database_url: str) -> None:
    store = Store.open(database_url, new_saes="private")
    store.add_sae(make_sae(), make_vocabulary())
    assert store.sae("demo").visibility == "private"
    store.set_visibility("demo", "unlisted")
    for created_at in (NOW, NOW + timedelta(days=1)):
        store.add_sae(make_sae(created_at=created_at), make_vocabulary())
        assert store.sae("demo").visibility == "unlisted"
    with pytest.raises(ConfigError, match="public, unlisted, private"):
        store.set_visibility("demo", "secret")  # type: ignore[arg-type]
    store.close()


def test_what_a_viewer_writes_is_noted_with_it_or_not_at_all(store: Store) -> None:
    fill_store(store)
    assert store.accounts.audit_trail() == []
    editor = store.seen_by(EDITOR)
    editor.add_labels("demo", {5: make_label()})
    with pytest.raises(NotFoundError):
        editor.delete_label("nobody", 5)
    editor.sae("demo")
    (entry,) = store.accounts.audit_trail()
    assert (entry.name, entry.action, entry.request_id) == ("edda", "PUT /label", "r1")
    for _ in range(4):
        editor.delete_label("demo", 5)
    trail = store.accounts.audit_trail()
    assert [e.audit_id for e in trail] == sorted((e.audit_id for e in trail), reverse=True)
    assert store.accounts.audit_trail(before=trail[1].audit_id, limit=2) == trail[2:4]
