"""What training and indexing really tell of themselves: start, progress, checkpoints, and how they ended."""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_core import evaluate, run_folder
from sae_core.config import IndexConfig, TrainConfig
from sae_core.errors import ConfigError, CorpusError
from sae_core.fit import Trainee
from sae_core.index import build_index, index_shard, merge_shards
from sae_core.index_folder import Shard
from sae_core.records import IndexRecords, SAEInfo
from sae_core.runs import list_runs, read_detail, read_run
from sae_core.train import train, train_together
from tests.runs import same_weights, small_config, write_corpus


@pytest.fixture(autouse=True, scope="module")
def _metrics_at_the_end_only() -> Iterator[None]:
    """However slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "_METRICS_SECONDS", 1e9)
        yield


@pytest.fixture(scope="module")
def config(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return small_config(tiny_llama, write_corpus(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def made(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SAEInfo]:
    """A home with the SAE "one", and the SAE."""
    home = tmp_path_factory.mktemp("made")
    info = train(config, runs=home / "runs", slug="one")
    assert info is not None
    return home, info


def told(home: Path, run_id: str) -> list[str]:
    return [line.text.split(":")[0] for line in read_detail(home, run_id).log]


def after(method: Callable[..., Any], n: int, do: Callable[[], object]) -> Callable[..., Any]:
    """The method, calling `do` behind its n-th call."""
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        answer = method(*arguments, **named)
        calls += 1
        if calls == n:
            do()
        return answer

    return counted


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_trained_sae_is_a_finished_run_with_its_curves(made: tuple[Path, SAEInfo], config: TrainConfig) -> None:
    home, _ = made
    detail = read_detail(home, "one")
    assert (detail.run.state, detail.run.starts, detail.run.problem) == ("finished", 1, None)
    assert detail.run.config == {**dataclasses.asdict(config), "corpus": list(config.corpus)}
    progress = detail.run.progress
    assert progress is not None
    assert (progress.what, progress.unit, progress.done, progress.total) == ("training", "tokens", 2048, 2048)
    (point,) = detail.points
    assert point.tokens == 2048 and point.fvu is not None and point.at is not None


def test_a_stopped_training_says_where_and_goes_on_as_the_same_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    with monkeypatch.context() as patch:
        look = after(Trainee.step, 3, lambda: seen.append(read_run(tmp_path, "one").state))
        patch.setattr(Trainee, "step", after(look, 6, interrupt))
        assert train(config, runs=tmp_path / "runs", slug="one") is None
    assert seen == ["running"]
    run = read_run(tmp_path, "one")
    assert run.state == "stopped" and run.progress is not None and run.progress.done == 768
    assert told(tmp_path, "one")[:3] == ["started", "checkpoint at 768 tokens", "stopped"]
    assert train(config, runs=tmp_path / "runs", slug="one") is not None
    assert read_run(tmp_path, "one").starts == 2
    assert "goes on from 768 tokens" in told(tmp_path, "one")
    assert read_run(tmp_path, "one").state == "finished"


def test_an_input_that_cannot_be_used_is_a_failed_run_with_its_sentence(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        train(dataclasses.replace(config, layer=9), runs=tmp_path / "runs", slug="one")
    run = read_run(tmp_path, "one")
    assert (run.state, run.problem) == ("failed", str(refused.value))


def test_saes_of_one_pass_are_a_run_each(config: TrainConfig, tmp_path: Path) -> None:
    both = {"two": config, "three": dataclasses.replace(config, k=2)}
    assert train_together(both, runs=tmp_path / "runs") is not None
    assert {run.run_id: (run.state, run.together) for run in list_runs(tmp_path)} == dict.fromkeys(
        both, ("finished", ("two", "three"))
    )
    assert read_run(tmp_path, "three").progress == read_run(tmp_path, "two").progress


def test_training_ends_the_same_where_its_log_cannot_be_written(
    config: TrainConfig, made: tuple[Path, SAEInfo], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("run.jsonl", "progress.new"):  # nobody, not even root, can write into these
        (tmp_path / "runs" / "one" / name / "x").mkdir(parents=True)
    assert train(config, runs=tmp_path / "runs", slug="one") is not None
    assert same_weights(tmp_path / "runs" / "one", made[0] / "runs" / "one")
    assert len([record for record in caplog.records if record.name == "sae_core.run_log"]) == 1


def index_config(config: TrainConfig, **changes: Any) -> IndexConfig:
    return IndexConfig(slug="one", corpus=config.corpus, name="texts", device="cpu", batch_contexts=3, **changes)


def test_an_index_is_a_run_until_it_is_kept(config: TrainConfig, made: tuple[Path, SAEInfo], tmp_path: Path) -> None:
    states = []

    def keep(records: IndexRecords) -> None:
        states.append(read_run(tmp_path, "one~texts").state)

    assert build_index(made[1], index_config(config), home=tmp_path, keep=keep) is not None
    run = read_run(tmp_path, "one~texts")
    assert (states, run.state, run.corpus) == (["running"], "finished", "texts")
    assert run.config["batch_contexts"] == 3
    assert run.progress is not None and run.progress.done == run.progress.total


def test_an_index_that_could_not_be_kept_has_failed(
    config: TrainConfig, made: tuple[Path, SAEInfo], tmp_path: Path
) -> None:
    def keep(records: IndexRecords) -> None:
        raise CorpusError("This cannot be kept.")

    with pytest.raises(CorpusError):
        build_index(made[1], index_config(config), home=tmp_path, keep=keep)
    run = read_run(tmp_path, "one~texts")
    assert (run.state, run.problem) == ("failed", "This cannot be kept.")


def test_a_stopped_index_goes_on_as_the_same_run(
    config: TrainConfig, made: tuple[Path, SAEInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.CorpusPass, "add", after(evaluate.CorpusPass.add, 2, interrupt))
        assert build_index(made[1], index_config(config), home=tmp_path) is None
    assert read_run(tmp_path, "one~texts").state == "stopped"
    assert build_index(made[1], index_config(config), home=tmp_path) is not None
    assert any(line.startswith("goes on from context 6 of ") for line in told(tmp_path, "one~texts"))
    assert read_run(tmp_path, "one~texts").state == "finished"


def test_shards_are_runs_of_their_own(config: TrainConfig, made: tuple[Path, SAEInfo], tmp_path: Path) -> None:
    for number in (1, 2):
        assert index_shard(made[1], index_config(config), Shard(number, 2), home=tmp_path)
    merge_shards(made[1], index_config(config), home=tmp_path)
    assert {run.run_id: (run.state, run.shard) for run in list_runs(tmp_path)} == {
        "one~texts": ("finished", None),
        "one~texts~1-of-2": ("finished", "1/2"),
        "one~texts~2-of-2": ("finished", "2/2"),
    }
