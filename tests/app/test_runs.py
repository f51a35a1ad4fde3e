"""A run's page, its twin and its stream of events; what the start page says of runs."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app import run_feed, runs
from app.run_feed import RunFeeds
from app.server import Server
from sae_core.errors import ConfigError
from sae_core.progress import progress_bar, say
from sae_core.run_log import METRICS_FILE
from sae_core.runs import list_runs
from tests.app.test_pages import Checked
from tests.run_logs import TRAINING, indexing, measure, training, training_files


@contextmanager
def halfway(home: Path) -> Iterator[None]:
    """A training run of "demo" at work, a quarter of its tokens done at 1,000 tokens a second."""
    with training(home) as log, progress_bar(total=100_000, what="training") as bar:
        bar.start_t -= 25
        bar.update(25_000)
        log._write_progress()
        measure(home, [1000, 3000])
        yield
        log.stop()


@pytest.fixture
def address(app: FastAPI) -> Iterator[str]:
    """The app on a real server, which streams as it goes on."""
    server = Server(app)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", page)))


def events_in(text: str) -> list[tuple[str, Any, str | None]]:
    """Name, data and id of each event."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
    return found


# Pages


def test_a_run_at_work_shows_how_far_it_is_without_a_script(client: TestClient, tmp_path: Path) -> None:
    with halfway(tmp_path):
        page = client.get("/runs/demo").text
    checked, text = Checked(page), text_of(page)
    assert (checked.open, checked.refused) == ([], [])
    for fact in (
        "Training demo", "25%", "25,000 of 100,000 tokens", "tokens/s", "80 s left", "0.250", "0.500", "15.0", "0.30%",
        "3,000 tokens FVU 0.250", "blocks.3.hook_resid_post", "topk, 300 features, k 15", "poems.txt",
        "saescope train --model demo-lm --layer 3 --corpus poems.txt", "--slug demo",
    ):  # fmt: skip
        assert fact in text, fact
    assert 'data-events="/api/runs/demo/events"' in page
    assert page.count("<path d=") == 4
    assert "FVU: 0.500 at first, 0.250 now" in page


def test_a_run_that_has_not_measured_anything_yet_is_a_page(client: TestClient, tmp_path: Path) -> None:
    with training(tmp_path):
        page = client.get("/runs/demo").text
    assert "starting" in text_of(page)
    assert "FVU: nothing is measured yet" in page


def test_a_filling_buffer_is_said(client: TestClient, tmp_path: Path) -> None:
    with training(tmp_path) as log, progress_bar(total=10, what="training") as bar:
        say(bar, "filling the buffer 20%")
        log._write_progress()
        assert "filling the buffer 20%" in client.get("/runs/demo").text


def test_a_finished_run_keeps_its_curves_and_leads_to_the_sae(client: TestClient, tmp_path: Path) -> None:
    with training(tmp_path):
        measure(tmp_path, [1000, 3000])
    page = client.get("/runs/demo").text
    assert "data-events" not in page
    assert '<a href="/saes/demo">Open the SAE demo</a>' in page
    assert 'data-next="/saes/demo"' in page
    assert page.count("<path d=") == 4
    assert "Finished on" in page


def test_a_trained_sae_leads_to_the_index_that_is_being_made(client: TestClient, tmp_path: Path) -> None:
    with training(tmp_path):
        pass
    with indexing(tmp_path):
        page = client.get("/runs/demo").text
        assert 'data-next="/runs/demo~poems"' in page
        assert '<a href="/runs/demo~poems">being indexed</a>' in page
        page = client.get("/runs/demo~poems").text
        assert "Indexing demo on poems" in page
        assert "data-chart" not in page
        assert "saescope index demo --corpus poems.txt --name poems" in text_of(page)
    assert 'data-next="/saes/demo"' in client.get("/runs/demo~poems").text


def test_an_sae_leads_to_the_curves_of_its_training(client: TestClient, tmp_path: Path) -> None:
    assert "/runs/" not in client.get("/saes/demo").text
    with training(tmp_path):
        pass
    assert '<a href="/runs/demo">curves and log</a>' in client.get("/saes/demo").text


def test_an_sae_that_is_not_in_the_database_is_said(client: TestClient, tmp_path: Path) -> None:
    with training(tmp_path, "other"):
        pass
    page = client.get("/runs/other").text
    assert "It is not in this database yet" in page
    assert "data-next" not in page


def test_a_failed_run_says_why_and_what_to_do(client: TestClient, tmp_path: Path) -> None:
    with pytest.raises(ConfigError), training(tmp_path):
        raise ConfigError("A <b>layer</b> 12 is not there; give 0 to 5.")
    for path in ("/runs/demo", "/", "/runs"):
        assert "A <b>layer</b> 12 is not there; give 0 to 5." in unescape(client.get(path).text)
        assert "<b>layer" not in client.get(path).text
    assert "goes on from its last checkpoint" in client.get("/runs/demo").text


def test_a_stopped_run_says_the_command_that_goes_on(client: TestClient, tmp_path: Path) -> None:
    with halfway(tmp_path):
        pass
    text = text_of(client.get("/runs/demo").text)
    assert "Stopped at 25,000 of 100,000 tokens" in text
    assert "This command goes on from its last checkpoint" in text
    assert "--slug demo" in text


def test_saes_of_one_pass_lead_to_each_other(client: TestClient, tmp_path: Path) -> None:
    with training(tmp_path, "one", "two", "three"):
        page = client.get("/runs/two").text
    assert '<a href="/runs/one">one</a>, <a href="/runs/three">three</a>' in page


@pytest.mark.parametrize("run_id", ["nope", "..%2f..", "~", "a~b", "demo~"])
def test_an_unknown_run_is_not_there(client: TestClient, run_id: str) -> None:
    for path in (f"/runs/{run_id}", f"/api/runs/{run_id}", f"/api/runs/{run_id}/charts", f"/api/runs/{run_id}/events"):
        assert client.get(path).status_code == 404, path


def test_a_configuration_of_another_version_is_still_a_page(client: TestClient, tmp_path: Path) -> None:
    files = training_files(tmp_path)
    for config in ({}, {"tokens": "many", "d_sae": None, "corpus": "x", "new": [1]}, {"tokens": -1}):
        (files.folder / "config.json").write_text(json.dumps(config))
        assert client.get("/runs/demo").status_code == 200
        assert client.get("/api/runs/demo/charts").status_code == 200


# The start page


def test_home_shows_what_is_at_work_and_what_did_not_end_well(client: TestClient, tmp_path: Path) -> None:
    assert "In progress" not in client.get("/").text
    with training(tmp_path, "done"):
        pass
    for slug in ("a", "b", "c", "d"):
        with training(tmp_path, slug) as log:
            log.stop()
    page = client.get("/").text
    assert "Not finished" in page and "In progress" not in page
    assert re.findall(r'href="/runs/(\w+)">Training', page) == ["d", "c", "b"]
    with halfway(tmp_path):
        page = client.get("/").text
    assert "In progress" in page and "Not finished" not in page
    assert re.findall(r'href="/runs/(\w+)">Training', page) == ["demo", "d", "c", "b"]
    assert "25,000 of 100,000 tokens" in page
    assert Checked(page).open == []


def test_home_shows_a_sweep_once(client: TestClient, tmp_path: Path) -> None:
    with training(tmp_path, "one", "two", "three"), training(tmp_path, "other"):
        page, everything = client.get("/").text, client.get("/runs").text
    names = re.findall(r'href="/runs/(\w+)">Training', page)
    assert len(names) == 2 and "other" in names
    assert page.count("on one pass with 2 others") == 1
    assert everything.count("on one pass with 2 others") == 3


def test_what_stopped_long_ago_is_not_brought_up(tmp_path: Path) -> None:
    with training(tmp_path) as log:
        log.stop()
    now = datetime.now(tz=UTC)
    found = list_runs(tmp_path)
    assert len(runs.unfinished(found, now=now + timedelta(days=6))) == 1
    assert runs.unfinished(found, now=now + timedelta(days=8)) == []


def test_the_list_has_all_runs_and_its_twin_too(client: TestClient, tmp_path: Path) -> None:
    with training(tmp_path):
        pass
    with indexing(tmp_path):
        page, twin = client.get("/runs").text, client.get("/api/runs").json()
    assert re.findall(r'href="/runs/([^"]+)">', page) == ["demo~poems", "demo"]
    assert [(run["run_id"], run["state"]) for run in twin["items"]] == [("demo~poems", "running"), ("demo", "finished")]
    assert twin["next"] is None


# The twin


def test_the_twin_has_the_record_with_its_points(client: TestClient, tmp_path: Path) -> None:
    with halfway(tmp_path):
        answer = client.get("/api/runs/demo").json()
    assert answer["run"]["state"] == "running"
    assert answer["run"]["progress"]["done"] == 25_000
    assert answer["run"]["config"]["d_sae"] == TRAINING.d_sae
    assert [point["fvu"] for point in answer["points"]] == [0.5, 0.25]
    assert "3,000 tokens" in answer["log"][-1]["text"]


def test_a_long_run_is_thinned(client: TestClient, tmp_path: Path) -> None:
    with training(tmp_path):
        measure(tmp_path, range(5000))
    points = client.get("/api/runs/demo").json()["points"]
    assert len(points) == runs.MOST_POINTS
    assert (points[0]["tokens"], points[-1]["tokens"]) == (0, 4999)
    figures = client.get("/api/runs/demo/charts").json()
    assert len(figures["fvu"]["data"][0]["x"]) == runs.MOST_POINTS


# The stream


def test_a_finished_run_is_told_once_and_the_stream_ends(client: TestClient, tmp_path: Path) -> None:
    with training(tmp_path):
        measure(tmp_path, [1000, 3000])
    response = client.get("/api/runs/demo/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert "content-encoding" not in response.headers
    points, run, end = events_in(response.text)
    assert points[0] == "points" and points[2] == "1-2"
    assert points[1]["replaces"] and [point["tokens"] for point in points[1]["points"]] == [1000, 3000]
    assert run[0] == "run" and run[1]["state"] == "finished" and run[1]["shown"]["fvu"] == "0.250"
    assert end[:2] == ("end", "finished")


@pytest.mark.parametrize(
    ("last_event_id", "replaces", "tokens"),
    [
        ("1-1", False, [3000]),
        ("1-2", None, None),  # nothing is new
        ("1-3", True, [1000, 3000]),  # more than there is: some were taken back
        ("2-1", True, [1000, 3000]),  # of another start
        ("x", True, [1000, 3000]),
        ("1-9999999999999999", True, [1000, 3000]),
    ],
)
def test_a_listener_who_comes_back_gets_what_it_missed(
    client: TestClient, tmp_path: Path, last_event_id: str, replaces: bool | None, tokens: list[int] | None
) -> None:
    with training(tmp_path):
        measure(tmp_path, [1000, 3000])
    events = events_in(client.get("/api/runs/demo/events", headers={"Last-Event-ID": last_event_id}).text)
    sent = [data for name, data, _ in events if name == "points"]
    if replaces is None:
        assert sent == []
    else:
        assert [(data["replaces"], [point["tokens"] for point in data["points"]]) for data in sent] == [
            (replaces, tokens)
        ]


def test_a_stream_goes_on_with_the_run_and_ends_with_it(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_feed, "LOOK_SECONDS", 0.05)
    seen: list[tuple[str, Any]] = []
    with training(tmp_path) as log, httpx.stream("GET", f"{address}/api/runs/demo/events", timeout=20) as response:
        lines = response.iter_lines()

        def until(name: str, holds: Any) -> None:
            for line in lines:
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    seen.append((event, json.loads(line.removeprefix("data: "))))
                    if event == name and holds(seen[-1][1]):
                        return
            raise AssertionError(f"the stream ended without {name}: {seen}")

        until("run", lambda tick: tick["state"] == "running")
        measure(tmp_path, [1000])
        until("points", lambda news: [p["tokens"] for p in news["points"]] == [1000] and not news["replaces"])
        log.note("checkpoint at 1,000 tokens")
        until("run", lambda tick: tick["log"][-1]["text"] == "checkpoint at 1,000 tokens")
        (tmp_path / "runs" / "demo" / METRICS_FILE).write_text("")  # taken back
        until("points", lambda news: news == {"replaces": True, "points": []})
        log.end("stopped")
        until("end", lambda state: state == "stopped")
        assert list(lines)[-1:] in ([], [""])


def test_listeners_hold_no_thread_and_do_not_keep_the_server_from_ending(app: FastAPI, tmp_path: Path) -> None:
    server = Server(app)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with training(tmp_path), httpx.Client(limits=httpx.Limits(max_connections=100), timeout=20) as client:
        streams = []
        for _ in range(60):  # more than the threads that answer requests
            request = client.build_request("GET", f"{address}/api/runs/demo/events")
            streams.append(client.send(request, stream=True))
        assert client.get(f"{address}/healthz").status_code == 200
        started = time.monotonic()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
        assert time.monotonic() - started < 2.5  # uvicorn would give up on them after 3
        for stream in streams:
            stream.close()


def test_a_poller_is_shared_by_all_who_listen_and_ends_with_the_last(tmp_path: Path) -> None:
    async def listen() -> list[bytes]:
        feeds, stopping = RunFeeds(), asyncio.Event()
        streams = [feeds.events(tmp_path, "demo", last_event_id=None, stopping=stopping) for _ in range(60)]
        first = await asyncio.gather(*(anext(stream) for stream in streams))
        assert len(feeds._followed) == 1 and len(asyncio.all_tasks()) == 2
        for stream in streams:
            await stream.aclose()
        assert not feeds._followed
        return first

    with training(tmp_path, "demo"):
        first = asyncio.run(listen())
    assert len(set(first)) == 1 and b"event: run" in first[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "5 s"), (21, "25 s"), (75, "75 s"), (100, "2 min"), (3000, "50 min"), (9000, "2 h 30 min")],
)
def test_time_left_is_said_in_steps(seconds: float, text: str) -> None:
    assert runs.about(seconds) == text
