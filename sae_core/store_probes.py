"""Shared probes: their rows, read and written inside the transactions that `store` opens.

A shared probe outlives its SAE, as lists do: it holds the slug and the moment when the SAE was made, and says so where
the SAE is gone or another one has taken the slug. What was picked out in the text is kept as the page gave it.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from sae_core.errors import InputError, NotFoundError
from sae_core.records import SharedProbe
from sae_core.schema import probes, saes
from sae_core.search_terms import clean_text
from sae_core.store_lists import clean_author, random_id
from sae_core.store_viewer import hidden_slugs, unlisted_slugs

MAX_CHARACTERS = 200_000  # of a shared text
MAX_STATE = 4_000  # characters of its state as JSON


def insert_probe(
    connection: sa.Connection, *, sae: sa.RowMapping, text: str, state: Mapping[str, Any], author: str
) -> str:
    """Returns the new probe's id. `sae`: a row of `saes`."""
    text = clean_text(text)
    if not text.strip():
        raise InputError("The text is empty: type something to share.")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"The text has {len(text):,} characters and may have {MAX_CHARACTERS:,}; shorten it.")
    if len(json.dumps(state)) > MAX_STATE:
        raise InputError("What was picked out is too much to be stored; pin fewer features.")
    row = {
        "probe_id": random_id(),
        "slug": sae["slug"],
        "sae_created_at": sae["created_at"],
        "text": text,
        "state": dict(state),
        "author": clean_author(author),
        "created_at": datetime.now(UTC),
    }
    connection.execute(sa.insert(probes).values(row))
    return str(row["probe_id"])


def probe_of(connection: sa.Connection, probe_id: str) -> SharedProbe:
    shown = probes.c.slug.not_in(hidden_slugs(connection))
    query = sa.select(probes).where(probes.c.probe_id == clean_text(probe_id), shown)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFoundError("There is no such shared probe: it may have been deleted, or its address was cut short.")
    return _records(connection, [row])[0]


def newest_probes(connection: sa.Connection, *, limit: int) -> list[SharedProbe]:
    """The newest of SAEs that are listed for the viewer, or were before they were deleted."""
    shown = probes.c.slug.not_in(unlisted_slugs(connection))
    query = sa.select(probes).where(shown).order_by(probes.c.created_at.desc(), probes.c.probe_id).limit(limit)
    return _records(connection, connection.execute(query).mappings().all())


def remove_probe(connection: sa.Connection, probe_id: str) -> None:
    probe_of(connection, probe_id)
    connection.execute(sa.delete(probes).where(probes.c.probe_id == clean_text(probe_id)))


def _records(connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> list[SharedProbe]:
    query = sa.select(saes.c.slug, saes.c.created_at).where(saes.c.slug.in_({row["slug"] for row in rows}))
    made: dict[str, datetime] = {row["slug"]: row["created_at"] for row in connection.execute(query).mappings()}
    hidden = hidden_slugs(connection)
    return [_record(row, made=made.get(row["slug"]), hidden=hidden) for row in rows]


def _record(row: sa.RowMapping, *, made: datetime | None, hidden: Collection[str]) -> SharedProbe:
    problem = None
    if made is None:
        problem = f'The SAE "{row["slug"]}" has been deleted, and with it what its features were.'
    elif made != row["sae_created_at"]:
        problem = f'The SAE "{row["slug"]}" has been replaced since this was shared: its features are others now.'
    names = ("probe_id", "slug", "text", "author", "created_at")
    state = dict(row["state"])
    if "beside" in state:  # further SAEs, by name
        state["beside"] = [slug for slug in state["beside"] if slug not in hidden]
    return SharedProbe(**{name: row[name] for name in names}, state=state, problem=problem)
