"""Many rows at once: one prepared statement on SQLite, COPY on PostgreSQL."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError


def insert_rows(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts rows that all have the same columns; the others are NULL."""
    if not rows:
        return
    dialect, names = connection.dialect, list(rows[0])
    binds = [table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names]
    values = ([row[n] if b is None else b(row[n]) for n, b in zip(names, binds, strict=True)] for row in rows)
    columns = ", ".join(f'"{name}"' for name in names)
    if dialect.name != "postgresql":
        places = ", ".join("?" * len(names))
        statement = f'INSERT INTO "{table.name}" ({columns}) VALUES ({places})'
        connection.exec_driver_sql(statement, [tuple(row) for row in values])
        return
    statement = f'COPY "{table.name}" ({columns}) FROM STDIN (FORMAT BINARY)'
    raw: Any = connection.connection.driver_connection
    try:
        with raw.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types([_TYPES[type(table.c[name].type).__name__] for name in names])
            for row in values:
                copy.write_row(row)
    except dialect.loaded_dbapi.Error as error:  # as SQLAlchemy raises what its own statements meet
        raise DBAPIError(statement, None, error) from error


_TYPES = {
    "BigInteger": "int8",
    "DateTime": "timestamptz",
    "Double": "float8",
    "Integer": "int4",
    "LargeBinary": "bytea",
    "Text": "text",
    "UtcDateTime": "timestamptz",
}
