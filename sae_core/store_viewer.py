"""On whose behalf a transaction runs: which SAEs there are for that viewer, and the note of what was written.

The one place that decides whether an SAE is shown. Rows are found by `store_reads`, which asks here, so that what the
store answers to a viewer names no SAE that is hidden from them.
"""

from collections.abc import Collection
from datetime import UTC, datetime

import sqlalchemy as sa

from sae_core.access_records import Viewer, Visibility
from sae_core.schema import audit, deleted_saes, saes

OPTION = "saescope_viewer"  # of a connection: set by `store_engine` for each transaction

# Made once: to put a query together costs SQLAlchemy more than to run it.
_ALL = sa.union_all(
    sa.select(saes.c.slug, saes.c.visibility), sa.select(deleted_saes.c.slug, deleted_saes.c.visibility)
)
_PRIVATE = sa.union_all(
    sa.select(saes.c.slug).where(saes.c.visibility == "private"),
    sa.select(deleted_saes.c.slug).where(deleted_saes.c.visibility == "private"),
)


def viewer_of(connection: sa.Connection) -> Viewer | None:
    viewer: Viewer | None = connection.get_execution_options().get(OPTION)
    return viewer


def is_hidden(connection: sa.Connection, sae: sa.RowMapping) -> bool:
    """Whether there is no such SAE for the viewer. `sae`: any row with the SAE's visibility."""
    return _is_limited(connection) and sae["visibility"] == "private"


def is_listed(connection: sa.Connection, visibility: Visibility) -> bool:
    """Whether lists and searches have such an SAE for the viewer."""
    return not _is_limited(connection) or visibility == "public"


def hidden_slugs(connection: sa.Connection) -> Collection[str]:
    """The SAEs that are not there for the viewer, the deleted among them."""
    if not _is_limited(connection):
        return ()
    return connection.scalars(_PRIVATE).all()


def visibilities(connection: sa.Connection) -> dict[str, Visibility]:
    """Who finds each SAE, or found it before it was deleted; of the deleted those that not everybody found."""
    return {row.slug: row.visibility for row in connection.execute(_ALL)}


def unlisted_slugs(connection: sa.Connection) -> Collection[str]:
    """The SAEs that lists and searches leave out for the viewer, the deleted among them."""
    if not _is_limited(connection):
        return ()
    return [slug for slug, known in visibilities(connection).items() if known != "public"]


def note_write(connection: sa.Connection) -> None:
    """Within the transaction that it tells of, so that there is neither a write without its entry nor the reverse."""
    viewer = viewer_of(connection)
    if viewer is not None:
        row = {"at": datetime.now(UTC), "name": viewer.name, "action": viewer.action, "request_id": viewer.request_id}
        connection.execute(sa.insert(audit).values(row))


def _is_limited(connection: sa.Connection) -> bool:
    viewer = viewer_of(connection)
    return viewer is not None and not viewer.sees_everything
