"""On whose behalf a transaction runs: which SAEs there are for that viewer, and the note of what was written.

The one place that decides whether an SAE is shown. Rows are found by `store_reads`, which asks here, so that what the
store answers to a viewer names no SAE that is hidden from them.
"""

from collections.abc import Collection
from datetime import UTC, datetime

import sqlalchemy as sa

from sae_core.access_records import Viewer
from sae_core.schema import audit, saes

OPTION = "saescope_viewer"  # of a connection: set by `store_engine` for each transaction


def viewer_of(connection: sa.Connection) -> Viewer | None:
    viewer: Viewer | None = connection.get_execution_options().get(OPTION)
    return viewer


def is_hidden(connection: sa.Connection, sae: sa.RowMapping) -> bool:
    """Whether there is no such SAE for the viewer. `sae`: any row with the SAE's visibility."""
    return _is_limited(connection) and sae["visibility"] == "private"


def is_listed(connection: sa.Connection, sae: sa.RowMapping) -> bool:
    """Whether lists and searches have it for the viewer."""
    return not _is_limited(connection) or sae["visibility"] == "public"


def hidden_slugs(connection: sa.Connection) -> Collection[str]:
    """The SAEs that are not there for the viewer."""
    if not _is_limited(connection):
        return ()
    return connection.scalars(sa.select(saes.c.slug).where(saes.c.visibility == "private")).all()


def unlisted_slugs(connection: sa.Connection) -> Collection[str]:
    """The SAEs that lists and searches leave out for the viewer."""
    if not _is_limited(connection):
        return ()
    return connection.scalars(sa.select(saes.c.slug).where(saes.c.visibility != "public")).all()


def note_write(connection: sa.Connection) -> None:
    """Within the transaction that it tells of, so that there is neither a write without its entry nor the reverse."""
    viewer = viewer_of(connection)
    if viewer is not None:
        row = {"at": datetime.now(UTC), "name": viewer.name, "action": viewer.action, "request_id": viewer.request_id}
        connection.execute(sa.insert(audit).values(row))


def _is_limited(connection: sa.Connection) -> bool:
    viewer = viewer_of(connection)
    return viewer is not None and not viewer.sees_everything
