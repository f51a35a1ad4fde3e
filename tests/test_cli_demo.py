"""`saescope demo` as a user meets it: the dashboard is there first and shows how it goes; Ctrl-C loses nothing."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runs import write_corpus
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

# The command with something smaller to train; it may take as long as the test wants to look at it.
DEMO = """
import dataclasses, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have taken from its children
from app import cli, demo
model, corpus, port, seconds = sys.argv[1:]
demo.TRAINING = dataclasses.replace(
    demo.TRAINING, model=model, layer=1, corpus=(corpus,), d_sae=64, k=4, tokens=2048, context_size=32,
    batch_tokens=128, buffer_tokens=512, device="cpu",
)
demo.INDEXING = dataclasses.replace(demo.INDEXING, corpus=(corpus,), name="texts", device="cpu", batch_contexts=4)
if float(seconds):
    from sae_core.evaluate import CorpusPass
    from sae_core.fit import Trainee
    def slowed(method):
        return lambda *given, **named: (method(*given, **named), time.sleep(float(seconds)))[0]
    Trainee.step, CorpusPass.add = slowed(Trainee.step), slowed(CorpusPass.add)
sys.exit(cli.main(["demo", "--port", port]))
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a corpus."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"), write_corpus(tmp_path_factory.mktemp("corpus"))


@contextmanager
def demo(home: Path, texts: tuple[Path, Path], *, seconds: float = 0.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command at work, each step taking `seconds`; its address, as soon as it says it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "SAESCOPE_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("SAESCOPE_DATABASE_URL", None)
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO, *map(str, texts), str(port), str(seconds)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert f"saescope is at http://127.0.0.1:{port}" in process.stdout.readline()
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def wait_until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def runs_at(address: str) -> dict[str, str]:
    return {run["run_id"]: run["state"] for run in httpx.get(f"{address}/api/runs", timeout=30).json()["items"]}


def stop(process: subprocess.Popen[str]) -> str:
    """What it said after Ctrl-C, on which it must end by itself."""
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    return said


def test_the_run_is_shown_while_it_trains_and_ctrl_c_loses_nothing(texts: tuple[Path, Path], tmp_path: Path) -> None:
    with demo(tmp_path, texts, seconds=1.0) as (process, address):
        assert process.stdout is not None
        watch = process.stdout.readline().split()[-1]
        assert watch == f"{address}/runs/demo-l3-4k?follow=1"
        assert httpx.get(watch, timeout=30).status_code == 200  # long before the model is loaded
        assert runs_at(address) == {"demo-l3-4k": "running"}
        api = f"{address}/api/runs/demo-l3-4k"
        wait_until(lambda: ((httpx.get(api).json()["run"]["progress"] or {}).get("done") or 0) > 300)
        assert "In progress" in httpx.get(address).text
        assert "the same command goes on from here" in stop(process)
    with demo(tmp_path, texts, seconds=1.0) as (process, address):
        wait_until(lambda: runs_at(address).get("demo-l3-4k~texts") == "running")
        log = [line["text"] for line in httpx.get(f"{address}/api/runs/demo-l3-4k").json()["log"]]
        assert any(line.startswith("goes on from ") for line in log)
        assert 'data-next="/runs/demo-l3-4k~texts"' in httpx.get(f"{address}/runs/demo-l3-4k").text
        assert "the same command goes on from here" in stop(process)
    with demo(tmp_path, texts) as (process, address):
        assert process.stdout is not None
        assert "Watch it at" in process.stdout.readline()
        lines = [process.stdout.readline() for _ in range(2)]
        assert f"The demo is ready: {address}/saes/demo-l3-4k" in lines[1]
        assert httpx.get(f"{address}/saes/demo-l3-4k/features/random", follow_redirects=True).status_code == 200
        assert set(runs_at(address).values()) == {"finished"}
        stop(process)
    with demo(tmp_path, texts) as (process, address):  # all is done: it serves, and says no more
        assert httpx.get(f"{address}/saes/demo-l3-4k", timeout=30).status_code == 200
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=30)
        assert printed == ""
        assert "training" not in said


def test_ctrl_c_before_anything_is_loaded_ends_it_at_once(texts: tuple[Path, Path], tmp_path: Path) -> None:
    with demo(tmp_path, texts) as (process, _):
        assert process.stdout is not None
        process.stdout.readline()
        stop(process)


def test_an_error_ends_the_server_too(texts: tuple[Path, Path], tmp_path: Path) -> None:
    with demo(tmp_path, (tmp_path / "nowhere", texts[1])) as (process, _):
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 2
        assert "no model folder" in said.splitlines()[-1]
