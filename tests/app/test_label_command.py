"""`saescope label` as a user meets it: estimate first, exit codes, Ctrl-C, and no key in what it prints."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app import cli
from sae_core.store import Store
from tests.sae_core.explain.planted import N_FEATURES, PLANTED, planted_store
from tests.stub_llm import StubLLM, serving

ROOT = Path(__file__).parents[2]
KEY = "sk-secret-123"


@pytest.fixture(scope="module")
def planted_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "saescope.db"
    planted_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def home(planted_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(planted_file, tmp_path)
    monkeypatch.setenv("SAESCOPE_HOME", str(tmp_path))
    for name in ("DATABASE_URL", "LLM_BASE_URL", "LLM_MODEL", "LLM_KEY"):
        monkeypatch.delenv(f"SAESCOPE_{name}", raising=False)
    return tmp_path


@pytest.fixture
def stub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubLLM]:
    with serving(StubLLM(fires=lambda text, marked: f" {PLANTED[0]}" in text, key=KEY)) as running:
        monkeypatch.setenv("SAESCOPE_LLM_BASE_URL", running.base_url)
        monkeypatch.setenv("SAESCOPE_LLM_MODEL", "stub-7b")
        monkeypatch.setenv("SAESCOPE_LLM_KEY", KEY)
        yield running


def labelled(home: Path, kind: str) -> list[int]:
    with closing(Store.open(f"sqlite:///{home}/saescope.db")) as store:
        return [n for n in range(N_FEATURES) if any(own.kind == kind for own in store.labels_of_feature("planted", n))]


def test_patterns_need_nobody_and_are_fitted_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["label", "planted", "--patterns", "--features", "0-3,7"]) == 0
    assert "5 more now, 5 of them tested" in capsys.readouterr().out
    assert set(labelled(home, "pattern")) >= {0, 1, 2, 3}
    assert cli.main(["label", "planted", "--patterns"]) == 0
    assert f"5 features were done before; {N_FEATURES - 5} more now" in capsys.readouterr().out


def test_what_it_takes_is_said_before_anything_is_asked(
    home: Path, stub: StubLLM, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["label", "planted", "--top", "3", "--price-in", "1000", "--price-out", "1000"]
    assert cli.main([*command, "--estimate"]) == 0
    said = capsys.readouterr().out
    assert stub.requests == [] and "3 take about 15 requests" in said and "Cost: " in said
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert "3 labels" in captured.out and "requests" in captured.out
    assert KEY not in captured.out + captured.err
    assert len(labelled(home, "model")) == 3
    n = len(stub.requests)
    assert cli.main(command) == 0
    assert len(stub.requests) == n and "3 features are done; 0 take" in capsys.readouterr().out
    assert cli.main(["label", "planted", "--unlabelled", "--features", "0-11"]) == 0
    assert len(labelled(home, "model")) == N_FEATURES


def test_it_stops_at_the_cost_that_is_allowed(home: Path, stub: StubLLM, capsys: pytest.CaptureFixture[str]) -> None:
    prices = ["--price-in", "1000", "--price-out", "1000", "--max-cost", "0.3"]  # 0.11 a request
    assert cli.main(["label", "planted", "--top", "5", "--concurrency", "1", *prices]) == 1
    assert "stopped at the cost that was allowed, 0.3." in capsys.readouterr().err
    assert len(stub.requests) == 3


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["planted", "--top", "3"], "SAESCOPE_LLM_BASE_URL", 2),
        (["planted", "--top", "3", "--base-url", "http://127.0.0.1:9/v1"], "SAESCOPE_LLM_MODEL", 2),
        (["planted", "--base-url", "http://127.0.0.1:9/v1", "--model", "m"], "Say which features", 2),
        (["planted", "--features", "99", "--patterns"], "0 to 11", 2),
        (["planted", "--features", "x", "--patterns"], "numbers and ranges", 2),
        (["planted", "--top", "3", "--max-cost", "1"], "--price-in", 2),
        (["nope", "--patterns"], 'no SAE "nope"', 2),
        (["planted", "--patterns", "--corpus", "nope"], 'not on "nope"', 2),
    ],
)
def test_bad_input_is_one_sentence(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str, code: int
) -> None:
    assert cli.main(["label", *arguments]) == code
    error = capsys.readouterr().err.strip()
    assert said in error and error.count("\n") == 0


def test_a_dead_endpoint_is_said_and_what_was_answered_is_kept(
    home: Path, stub: StubLLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_core.explain.client.FIRST_WAIT", 0.001)
    stub.dies_after = 4
    assert cli.main(["label", "planted", "--top", "5", "--concurrency", "1"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert len(labelled(home, "model")) >= 1


def test_ctrl_c_stops_at_once_and_the_same_command_goes_on(home: Path, stub: StubLLM) -> None:
    stub.delay = 0.2
    command = [sys.executable, "-m", "app.cli", "label", "planted", "--features", "0-11", "--concurrency", "1"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 60
    while len(stub.requests) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on from here" in errors and "Traceback" not in errors
    assert KEY not in output + errors
    done = labelled(home, "model")
    assert done and len(done) < N_FEATURES
    stub.delay = 0.0
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False)
    assert finished.returncode == 0, finished.stderr
    assert len(labelled(home, "model")) == N_FEATURES
    assert stub.kinds.count("explain") <= N_FEATURES + 1  # the one that was under way may be asked again
