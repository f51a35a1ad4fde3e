"""The database under the store: how it is opened, brought to the newest tables, locked, and how its errors read.

SQLite by default, PostgreSQL for a team. Reads see one moment of the database however many queries they take; writes
are rare and run one at a time, so each may be written as if it were alone.
"""

import copy
import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self, cast

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, TimeoutError

from sae_core.access_records import Viewer
from sae_core.errors import (
    ConfigError,
    DiskFullError,
    NewerDatabaseError,
    OlderDatabaseError,
    SaescopeError,
    StoreError,
)
from sae_core.schema import REVISION
from sae_core.store_viewer import OPTION, note_write

LOCK_SECONDS = 30.0  # how long a write waits for another process's write; `?timeout=` in an SQLite URL says otherwise
CONNECT_SECONDS = 10
PAGE_BYTES = 16_384  # of an SQLite file: rows of some 1 KB leave a quarter of pages of 4 KB empty
WRITE_LOCK = 7_251_019_034_881  # PostgreSQL advisory lock: any number that other programs will not choose

FOUND = "saescope_found"  # option of a transaction that only reads: rows that it has read, by what was asked for

POSTGRES_DISK_FULL = "53100"
POSTGRES_LOCKED = "55P03"


class Database:
    """An engine with two ways in: `reading` and `writing`, each one transaction. `viewer`: on whose behalf."""

    def __init__(self, url: str) -> None:
        self.viewer: Viewer | None = None
        self._shared: sa.Connection | None = None  # where all reads are of one moment
        self.url = _parsed(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        # Without the query, which may hold a password; the host's own password prints as ***.
        self.name = self.url.set(query={}).render_as_string(hide_password=True)
        self._engine = _sqlite_engine(self.url) if self.is_sqlite else _postgres_engine(self.url)
        self._commits = _Commits(self._engine) if self.is_sqlite else None

    def on_behalf_of(self, viewer: Viewer) -> Self:
        """The same database, open as it is, for this viewer."""
        other = copy.copy(self)
        other._shared = None  # that is on behalf of another
        other.viewer = viewer
        return other

    @contextmanager
    def at_one_moment(self) -> Iterator[Self]:
        """The same database, whose reads until the end of the block share one transaction of this thread."""
        with self.reading() as connection:
            other = copy.copy(self)
            other._shared = connection
            yield other

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        if self._shared is not None:
            with self._errors():
                yield self._shared
            return
        options: dict[str, Any] = {OPTION: self.viewer, FOUND: {}}
        if not self.is_sqlite:  # SQLite reads one snapshot anyway
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._errors(), self._engine.connect() as connection, connection.execution_options(**options).begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Everything or nothing; one writer at a time, over all processes."""
        options = {"saescope_writes": True, OPTION: self.viewer}  # the first is read by `begin` in `_sqlite_engine`
        with self._errors(), self._engine.connect() as connection, connection.execution_options(**options).begin():
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{math.ceil(LOCK_SECONDS * 1000)}ms'")
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(WRITE_LOCK)))
            yield connection
            note_write(connection)

    def commits(self) -> int | None:
        """A number that is another one after every commit, by whatever process; None: there is none to be had, as on
        PostgreSQL. Costs a few microseconds and never waits."""
        return self._commits.seen() if self._commits is not None else None

    def is_current(self) -> bool:
        with self.reading() as connection:
            return _revision(connection) == REVISION

    def migrate(self, *, upgrades: bool) -> None:
        """Create the tables, or with `upgrades` bring older ones up to date. Alembic is only imported if there is
        something to do. Raises OlderDatabaseError if there is and it is not asked for."""
        with self.reading() as connection:
            if _revision(connection) == REVISION:
                return
        if self.is_sqlite:
            self._write_ahead()
        with self.writing() as connection:
            found = _revision(connection)  # again: another process may have been faster
            if found != REVISION:
                if found is not None and found < REVISION and not upgrades:
                    raise OlderDatabaseError(
                        f"The database {self.name} was made by an older saescope (revision {found}, not {REVISION}); "
                        "copy it, then run `saescope db upgrade`."
                    )
                _upgrade(connection, found=found, name=self.name)

    def backup(self, path: Path) -> None:
        """Copy an SQLite database, as it is at one moment, into a new file; others read and write meanwhile."""
        if not self.is_sqlite:
            raise ConfigError(
                "A PostgreSQL database is copied by its own tool: pg_dump --format=custom --file=FILE "
                f"{self.url.set(drivername='postgresql', query={}).render_as_string(hide_password=True)}, "
                "and brought back by pg_restore."
            )
        if path.exists() or not path.parent.is_dir():
            raise ConfigError(f"{path} is there already, or its folder is not; name a new file in an old folder.")
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            with self._errors(), self._engine.connect() as connection:
                raw: Any = connection.connection.driver_connection
                with closing(sqlite3.connect(unfinished)) as copy_of_it:
                    raw.backup(copy_of_it)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def close(self) -> None:
        if self._commits is not None:
            self._commits.close()
        self._engine.dispose()

    def _write_ahead(self) -> None:
        """Switch an SQLite file to WAL, which it remembers: readers and the writer no longer wait for each other.

        SQLite does not wait for other connections here as it does elsewhere, hence the loop.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                with self._errors(), self._engine.connect() as connection:
                    raw: Any = connection.connection.driver_connection
                    raw.execute("PRAGMA journal_mode = WAL")
                return
            except StoreError as error:
                if not _is_locked(error.__cause__) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, TimeoutError, sqlite3.Error) as error:
            raise self._explained(error) from error

    def _explained(self, error: DBAPIError | TimeoutError | sqlite3.Error) -> SaescopeError:
        cause = error.orig if isinstance(error, DBAPIError) else error
        sqlite_code = getattr(cause, "sqlite_errorcode", None)
        if sqlite_code == sqlite3.SQLITE_FULL or getattr(cause, "sqlstate", None) == POSTGRES_DISK_FULL:
            return DiskFullError(
                f"The disk of the database {self.name} is full and nothing was changed; free some space and repeat."
            )
        if _is_locked(error):
            return StoreError(f"The database {self.name} is in use by another process; try again when that is done.")
        if sqlite_code == sqlite3.SQLITE_NOTADB:
            return StoreError(f"{self.url.database} is not an SQLite database; name another file.")
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
        if self.url.password:
            reason = reason.replace(str(self.url.password), "***")
        if self.is_sqlite:
            return StoreError(f"The database {self.name} cannot be used ({reason}); check the file and its folder.")
        return StoreError(f"The database {self.name} does not answer ({reason}); check the server and the URL.")


class _Commits:
    """Sees every commit to an SQLite file, by a connection that is used for nothing else: what SQLite tells it changes
    with the commits of all other connections, those of this process too."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._raw: sqlite3.Connection | None = None

    def seen(self) -> int | None:
        with self._lock:
            try:
                if self._raw is None:
                    pooled = self._engine.raw_connection()
                    self._raw = cast(sqlite3.Connection, pooled.driver_connection)
                    pooled.detach()
                    self._raw.execute("PRAGMA busy_timeout = 0")
                return int(self._raw.execute("PRAGMA data_version").fetchone()[0])
            except (sqlite3.Error, DBAPIError, TimeoutError):
                return None

    def close(self) -> None:
        with self._lock:
            if self._raw is not None:
                self._raw.close()
                self._raw = None


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StoreError(_BAD_URL) from error
    if parsed.drivername == "postgres" or parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite") or parsed.host:
        raise StoreError(_BAD_URL)
    if parsed.database in (None, "", ":memory:"):
        raise StoreError(
            "A database in memory is gone when saescope stops; name a file: sqlite:////full/path/to/file.db."
        )
    folder = Path(str(parsed.database)).parent
    if not folder.is_dir():
        raise StoreError(f"The database's folder {folder} does not exist; create it or name another.")
    return parsed


_BAD_URL = (
    "The database URL is not understood; write sqlite:////full/path/to/file.db or postgresql://user:password@host/name."
)


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    arguments = {} if "timeout" in url.query else {"timeout": LOCK_SECONDS}
    engine = sa.create_engine(url, connect_args=arguments)

    @sa.event.listens_for(engine, "connect")
    def prepare(raw: sqlite3.Connection, _record: object) -> None:
        raw.isolation_level = None  # transactions begin where `begin` below says, not where sqlite3 guesses
        raw.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file; one that is there keeps its own
        raw.execute("PRAGMA foreign_keys = ON")
        raw.execute("PRAGMA synchronous = FULL")  # a committed label survives a power cut

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("saescope_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres_engine(url: sa.URL) -> sa.Engine:
    # A statement prepared on the server is planned once for all searches, as if each found a few rows: with a million
    # features a hundred times as slow.
    arguments: dict[str, Any] = {"prepare_threshold": None}
    if "connect_timeout" not in url.query:
        arguments["connect_timeout"] = CONNECT_SECONDS
    return sa.create_engine(url, connect_args=arguments, pool_pre_ping=True)  # a restarted server is no error


def _is_locked(error: BaseException | None) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    busy = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    # The low byte is the kind of error, the rest its circumstances.
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF in busy or getattr(cause, "sqlstate", "") == POSTGRES_LOCKED


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _upgrade(connection: sa.Connection, *, found: str | None, name: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise NewerDatabaseError(
            f"The database {name} was written by a later version of saescope ({found}); upgrade saescope to open it."
        )
    command.upgrade(config, "head")
