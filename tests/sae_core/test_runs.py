"""Runs as others read them: which there are, their state, their curves as they grow."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sae_core import runs, sae
from sae_core.errors import NotFoundError
from sae_core.run_log import METRICS_FILE
from sae_core.runs import PointsReader, list_runs, read_detail, read_run, thinned
from tests.run_logs import INDEXING, TRAINING, indexing, measure, training, training_files


def test_a_home_without_runs_has_none(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nowhere") == []
    with pytest.raises(NotFoundError, match="the list of runs"):
        read_run(tmp_path, "demo")


@pytest.mark.parametrize(
    "run_id", ["", "..", "../x", "a/b", ".hidden", "a~../b", "a~", "~a", "a\0", "a~b~c", "x" * 300]
)
def test_an_id_never_leaves_the_home(tmp_path: Path, run_id: str) -> None:
    training_files(tmp_path, "a")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFoundError):
        read_run(tmp_path, run_id)


def test_a_training_run_says_what_it_does(tmp_path: Path) -> None:
    with training(tmp_path):
        measure(tmp_path, [1000, 2000])
        run = read_run(tmp_path, "demo")
        assert (run.kind, run.slug, run.state, run.ended_at) == ("training", "demo", "running", None)
        assert run.config["d_sae"] == TRAINING.d_sae
        assert run.folder == str(tmp_path / "runs" / "demo")
    detail = read_detail(tmp_path, "demo")
    assert detail.run.state == "finished"
    assert detail.run.ended_at is not None and detail.run.started_at is not None
    assert [point.tokens for point in detail.points] == [1000, 2000]
    assert detail.points[0].fvu == 0.5 and detail.points[0].loss == 1.0
    assert "2,000 tokens  FVU 0.333  L0 15.0  dead 0.2%" in [line.text for line in detail.log]


def test_an_indexing_run_says_what_it_does(tmp_path: Path) -> None:
    with indexing(tmp_path, shard=(2, 8)):
        (run,) = list_runs(tmp_path)
        assert (run.run_id, run.kind, run.slug) == ("demo~poems~2-of-8", "indexing", "demo")
        assert (run.corpus, run.shard, run.state) == ("poems", "2/8", "running")
        assert run.config["name"] == INDEXING.name
    assert read_run(tmp_path, run.run_id).state == "finished"
    assert read_detail(tmp_path, run.run_id).points == ()


def test_what_is_at_work_comes_first_then_the_newest(tmp_path: Path) -> None:
    with training(tmp_path, "old"):
        pass
    with training(tmp_path, "new") as log:
        log.stop()
    with training(tmp_path, "now"), indexing(tmp_path):
        assert [run.run_id for run in list_runs(tmp_path)][2:] == ["new", "old"]
        assert {run.run_id for run in list_runs(tmp_path)[:2]} == {"now", "demo~poems"}


def test_saes_on_one_pass_share_its_progress_and_have_their_own_curves(tmp_path: Path) -> None:
    from sae_core.progress import progress_bar

    with training(tmp_path, "one", "two"):
        measure(tmp_path, [7], slug="two")
        with progress_bar(total=10, what="training 2 SAEs") as bar:
            bar.update(4)
    one, two = (read_run(tmp_path, slug) for slug in ("one", "two"))
    assert one.together == two.together == ("one", "two")
    assert one.progress == two.progress
    assert two.progress is not None and two.progress.done == 4
    assert [len(read_detail(tmp_path, slug).points) for slug in ("one", "two")] == [0, 1]
    assert not (tmp_path / "runs" / "two" / "progress.json").exists()


def test_a_run_of_before_there_were_logs_keeps_its_curves(tmp_path: Path) -> None:
    files = training_files(tmp_path)
    measure(tmp_path, [1000])
    assert read_run(tmp_path, "demo").state == "stopped"
    (files.folder / "sae.json").write_text("{}")
    detail = read_detail(tmp_path, "demo")
    assert detail.run.state == "finished"
    assert detail.run.ended_at is not None
    assert len(detail.points) == 1


def test_weights_that_are_there_are_a_finished_run_whatever_the_log_says(tmp_path: Path) -> None:
    with training(tmp_path):
        pass
    with training(tmp_path) as log:  # killed after the weights were written
        log.stop()
    assert read_run(tmp_path, "demo").state == "finished"
    assert runs.SHAPE_FILE == sae.SHAPE_FILE


def test_a_process_on_another_machine_is_believed_for_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    with training(tmp_path), monkeypatch.context() as patch:
        patch.setattr(runs.socket, "gethostname", lambda: "elsewhere")
        for later, state in ((30, "running"), (90, "stopped")):
            patch.setattr(runs.time, "time", lambda later=later: now + later)
            assert read_run(tmp_path, "demo").state == state


def test_a_number_that_another_process_has_now_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 100
    with training(tmp_path), monkeypatch.context() as patch:
        patch.setattr(runs.time, "time", lambda: later)
        assert read_run(tmp_path, "demo").state == "running"
        patch.setattr(runs, "birth", lambda pid: 5)
        assert read_run(tmp_path, "demo").state == "stopped"


def test_time_at_work_leaves_out_the_pauses(tmp_path: Path) -> None:
    files = training_files(tmp_path)
    events = [("started", 100), ("note", 130), ("started", 1000), ("note", 1010), ("stopped", 1020)]
    files.events.write_text("".join(json.dumps({"event": name, "at": at}) + "\n" for name, at in events))
    run = read_run(tmp_path, "demo")
    assert (run.seconds, run.starts) == (50.0, 2)
    assert run.started_at == datetime.fromtimestamp(100, tz=UTC)
    assert run.ended_at == datetime.fromtimestamp(1020, tz=UTC)


def test_points_are_read_as_they_come(tmp_path: Path) -> None:
    training_files(tmp_path)
    reader = PointsReader(tmp_path, "demo")
    assert reader.new() == (0, [])
    measure(tmp_path, [1000, 2000])
    path = tmp_path / "runs" / "demo" / METRICS_FILE
    with path.open("a") as file:
        file.write('{"tokens": 3000, ')  # it is being written
        file.flush()
        first, points = reader.new()
        assert (first, [point.tokens for point in points]) == (0, [1000, 2000])
        assert reader.new() == (2, [])
        file.write('"fvu": 0.5, "l0": 1, "dead_share": null, "loss": 1}\n')
    first, (point,) = reader.new()
    assert (first, point.tokens, point.dead_share, point.at) == (2, 3000, None, None)
    assert [p.tokens for p in reader.last] == [1000, 2000, 3000]


def test_points_that_were_taken_back_are_read_again(tmp_path: Path) -> None:
    training_files(tmp_path)
    measure(tmp_path, [1000, 2000, 3000])
    reader = PointsReader(tmp_path, "demo")
    reader.new()
    path = tmp_path / "runs" / "demo" / METRICS_FILE
    new = path.with_suffix(".new")  # as `run_folder` drops what lies behind a checkpoint
    new.write_text(path.read_text().splitlines(keepends=True)[0])
    new.replace(path)
    measure(tmp_path, [1500, 2500, 3500])
    first, points = reader.new()
    assert (first, [point.tokens for point in points]) == (0, [1000, 1500, 2500, 3500])
    assert [p.tokens for p in reader.last] == [1000, 1500, 2500, 3500]


def test_the_log_is_short_and_in_order(tmp_path: Path) -> None:
    with training(tmp_path) as log:
        for i in range(2 * runs.LOG_LINES):
            measure(tmp_path, [i], at=time.time() - 1000 + i)
        log.note("the last")
    lines = read_detail(tmp_path, "demo").log
    assert len(lines) == runs.LOG_LINES
    assert [line.text for line in lines[-2:]] == ["the last", "finished"]
    assert [line.at for line in lines] == sorted(line.at for line in lines)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"event": 1}', b'{"event": "x", "at": "y"}']
)
def test_damaged_files_count_as_not_there(tmp_path: Path, damage: bytes) -> None:
    with training(tmp_path) as log:
        log.stop()
    measure(tmp_path, [1000])
    for name in ("run.jsonl", "progress.json", METRICS_FILE):
        (tmp_path / "runs" / "demo" / name).write_bytes(damage)
    detail = read_detail(tmp_path, "demo")
    assert (detail.run.state, detail.points, detail.run.progress) == ("stopped", (), None)
    (tmp_path / "runs" / "demo" / "config.json").write_bytes(b"[1]")
    assert list_runs(tmp_path) == []


def test_thinned_keeps_both_ends() -> None:
    assert thinned(range(5), 5) == [0, 1, 2, 3, 4]
    few = thinned(range(1001), 11)
    assert few == [100 * i for i in range(11)]
