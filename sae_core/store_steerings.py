"""Steerings that were stored: their rows, read and written inside the transactions that `store` opens.

One holds what was asked and all that came of it, and is never changed; it outlives its SAE, so it has that one's slug.
"""

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime

import sqlalchemy as sa

from sae_core.causal.records import SavedSteering, SteeringSummary
from sae_core.errors import NotFoundError
from sae_core.schema import steerings
from sae_core.search_terms import clean_text
from sae_core.store_lists import clean_author, random_id
from sae_core.store_viewer import hidden_slugs, unlisted_slugs


def insert_steering(
    connection: sa.Connection, *, sae: sa.RowMapping, query: str, report: Mapping[str, object], author: str
) -> str:
    """Returns the new id. `sae`: a row of `saes`."""
    steering_id = random_id()
    row = {
        "steering_id": steering_id,
        "slug": sae["slug"],
        "sae_created_at": sae["created_at"],
        "author": clean_author(author),
        "created_at": datetime.now(UTC),
        "query": query,
        "report": report,
    }
    connection.execute(sa.insert(steerings).values(row))
    return steering_id


def saved_steering(connection: sa.Connection, steering_id: str) -> SavedSteering:
    wanted = steerings.c.steering_id == clean_text(steering_id)
    row = connection.execute(sa.select(steerings).where(wanted)).mappings().one_or_none()
    if row is None or row["slug"] in hidden_slugs(connection):
        raise NotFoundError("There is no such steering: check the link.")
    return SavedSteering(**row)


def newest_steerings(connection: sa.Connection, *, slug: str | None, limit: int) -> list[SteeringSummary]:
    """The newest, of one SAE or of all that are listed for the viewer; of those that are gone, all."""
    columns = (steerings.c[field.name] for field in fields(SteeringSummary))
    query = sa.select(*columns).order_by(steerings.c.created_at.desc(), steerings.c.steering_id).limit(limit)
    if slug is None:
        query = query.where(steerings.c.slug.not_in(unlisted_slugs(connection)))
    elif slug in hidden_slugs(connection):
        return []
    else:  # whoever knows its name may see those of an unlisted one
        query = query.where(steerings.c.slug == clean_text(slug))
    return [SteeringSummary(**row) for row in connection.execute(query).mappings()]


def remove_steering(connection: sa.Connection, steering_id: str) -> None:
    saved_steering(connection, steering_id)
    connection.execute(sa.delete(steerings).where(steerings.c.steering_id == clean_text(steering_id)))
