"""The log of a job: what it says while it works and when it ends, and that it never stands in the way."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae_core import run_log
from sae_core.errors import ConfigError
from sae_core.progress import progress_bar, say
from sae_core.run_log import RunFiles, birth, measured, recorded
from sae_core.runs import read_detail, read_run
from tests.run_logs import indexing, training, training_files


@pytest.fixture(autouse=True)
def quick_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "BEAT_SECONDS", 0.01)


def events_of(files: RunFiles) -> list[str]:
    return [json.loads(line)["event"] for line in files.events.read_text().splitlines() if line]


def wait_for(path: Path, text: str) -> dict[str, object]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if path.exists() and text in path.read_text():
            return json.loads(path.read_text())  # type: ignore[no-any-return]
        time.sleep(0.01)
    raise AssertionError(f"{text} never came into {path}")


def test_the_progress_bar_on_the_terminal_is_what_others_see(tmp_path: Path) -> None:
    files = training_files(tmp_path)
    with recorded([files], kind="training"), progress_bar(total=1000, done=100, what="training") as bar:
        bar.start_t -= 10  # ten seconds ago
        bar.update(300)
        say(bar, "FVU 0.123")
        shown = wait_for(files.progress, "FVU 0.123")
    assert {name: shown[name] for name in ("what", "unit", "done", "total", "said")} == {
        "what": "training", "unit": "tokens", "done": 400, "total": 1000, "said": "FVU 0.123",
    }  # fmt: skip
    assert shown["rate"] == pytest.approx(30, rel=0.1)  # since it began, without what was done before
    assert shown["seconds_left"] == pytest.approx(20, rel=0.1)


def test_the_end_has_everything_that_was_done_and_the_pace_at_which(tmp_path: Path) -> None:
    files = training_files(tmp_path)
    with recorded([files], kind="training"):
        with progress_bar(total=1000, what="training") as bar:
            bar.start_t -= 10
            bar.update(500)
            wait_for(files.progress, '"done": 500')
            bar.update(500)
        with progress_bar(total=5, what="hidden", is_shown=False):
            pass
    shown = json.loads(files.progress.read_text())
    assert (shown["what"], shown["done"]) == ("training", 1000)
    assert shown["rate"] == pytest.approx(50, rel=0.2)


def test_bars_outside_are_not_seen(tmp_path: Path) -> None:
    with progress_bar(total=5, what="before"), recorded([training_files(tmp_path)], kind="training"):
        pass
    with progress_bar(total=5, what="after") as bar:
        bar.update(5)
    assert read_run(tmp_path, "demo").progress is None


def test_what_ends_well_is_finished(tmp_path: Path) -> None:
    with training(tmp_path) as log:
        log.note("checkpoint at 8 tokens")
    assert events_of(RunFiles(tmp_path / "runs" / "demo")) == ["started", "note", "finished"]
    assert [line.text.split(":")[0] for line in read_detail(tmp_path, "demo").log] == [
        "started", "checkpoint at 8 tokens", "finished",
    ]  # fmt: skip


def test_what_is_asked_to_stop_has_stopped(tmp_path: Path) -> None:
    with training(tmp_path) as log:
        log.stop()
    assert read_run(tmp_path, "demo").state == "stopped"
    with pytest.raises(KeyboardInterrupt), indexing(tmp_path):
        raise KeyboardInterrupt
    assert read_run(tmp_path, "demo~poems").state == "stopped"


def test_an_error_is_kept_with_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), training(tmp_path):
        raise ConfigError("k (65) is above d_sae (64): lower k or raise d_sae.")
    run = read_run(tmp_path, "demo")
    assert (run.state, run.problem) == ("failed", "k (65) is above d_sae (64): lower k or raise d_sae.")
    with pytest.raises(RuntimeError), training(tmp_path):
        raise RuntimeError("a secret detail")
    problem = read_run(tmp_path, "demo").problem
    assert problem == "An unexpected error ended it (RuntimeError); the terminal in which it ran has the details."


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_killed_process_has_stopped_once_it_is_silent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tests.run_logs import training\n"
        "with training(Path(sys.argv[1])): print('here', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    silent = time.time() + 1000
    with pytest.MonkeyPatch.context() as patch:  # long after its last sign of life
        patch.setattr("sae_core.runs.time.time", lambda: silent)
        assert read_run(tmp_path, "demo").state == "running"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert read_run(tmp_path, "demo").state == "stopped"  # although nobody has asked for its exit status yet
        process.wait()
        assert read_run(tmp_path, "demo").state == "stopped"
    with training(tmp_path):
        assert read_run(tmp_path, "demo").state == "running"
    assert read_run(tmp_path, "demo").state == "finished"
    assert read_run(tmp_path, "demo").starts == 2


def test_half_a_line_of_a_killed_process_hides_nothing(tmp_path: Path) -> None:
    files = training_files(tmp_path)
    files.events.write_text('{"event": "started", "at": 17')
    with training(tmp_path):
        pass
    assert read_run(tmp_path, "demo").state == "finished"


def test_a_log_that_cannot_be_written_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    files = training_files(tmp_path)
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        patch.setattr(Path, "write_text", full)
        with recorded([files], kind="training") as log:
            log.note("one")
            time.sleep(0.1)
    assert [record.message for record in caplog.records] == [
        "the run's page will not show how this goes: [Errno 28] No space left on device"
    ]
    assert [path.name for path in files.folder.iterdir()] == ["config.json"]


def test_a_job_without_files_writes_nothing(tmp_path: Path) -> None:
    with recorded([], kind="training") as log:
        log.note("something")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_announced_is_there_before_it_starts(tmp_path: Path) -> None:
    run_log.announce(training_files(tmp_path))
    run = read_run(tmp_path, "demo")
    assert (run.state, run.starts, run.progress) == ("running", 0, None)
    with training(tmp_path):
        assert read_run(tmp_path, "demo").starts == 1
    assert [line.text.split(":")[0] for line in read_detail(tmp_path, "demo").log] == ["started", "finished"]


def test_names_of_corpora_become_names_of_files(tmp_path: Path) -> None:
    files = RunFiles.of_index(tmp_path, slug="demo", corpus="../my texts: 中文/x.txt", shard=(2, 8))
    assert files.events.parent == tmp_path / "indexes" / "demo"
    assert files.events.name == "run-my-texts-x.txt~2-of-8.jsonl"
    assert RunFiles.of_index(tmp_path, slug="demo", corpus="…").events.name == "run-corpus.jsonl"


def test_a_process_has_one_birth() -> None:
    own = birth(os.getpid())
    if sys.platform == "linux":
        assert own is not None and own == birth(os.getpid()) and own != birth(1)
    assert birth(2**30) is None


def test_measures_in_a_few_words() -> None:
    assert measured(fvu=0.1234, l0=32.0, dead_share=0.015) == "FVU 0.123  L0 32.0  dead 1.5%"
    assert measured(fvu=None, l0=1.0, dead_share=None) == "L0 1.0"
