"""The folder of a run: what it refuses, what it keeps when something breaks, and what it removes."""

import copy
import dataclasses
import errno
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_core import run_folder, sae
from sae_core.activations import Place
from sae_core.config import TrainConfig
from sae_core.errors import ConfigError, DiskFullError, WeightsError
from sae_core.fit import StepMetrics, Trainee
from sae_core.run_folder import RunFolder
from sae_core.sae import load_sae
from tests.runs import metrics_of

Refuses = Callable[..., AbstractContextManager[None]]
PLACE = Place(2, 700, 9)


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(
        model="m", layer=0, corpus=("a", "b"), d_sae=16, k=2, tokens=640, batch_tokens=32, buffer_tokens=64
    )


@pytest.fixture
def folder(tmp_path: Path, config: TrainConfig) -> RunFolder:
    return RunFolder(tmp_path / "one", config)


def trainee_after(config: TrainConfig, n_steps: int) -> Trainee:
    trainee = Trainee(config, d_in=8)
    for step in range(n_steps):
        trainee.step(torch.randn(32, 8, generator=torch.Generator().manual_seed(step)))
    return trainee


def checkpoints_in(folder: RunFolder) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in folder.path.glob("checkpoint-*.pt"))


def files_in(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def metrics_after(tokens: int) -> StepMetrics:
    return StepMetrics(tokens=tokens, fvu=0.123456789, l0=2.0, dead_share=0.25, loss=0.5)


# The configuration


def test_a_new_folder_holds_its_configuration(folder: RunFolder, config: TrainConfig) -> None:
    assert files_in(folder) == ["config.json"]
    assert TrainConfig.load(folder.path / "config.json") == config


def test_once_begun_another_configuration_is_refused_with_what_differs(
    folder: RunFolder, config: TrainConfig, refuses: Refuses
) -> None:
    folder.save_checkpoint(trainee_after(config, 1), PLACE)

    said = "The run one exists with another corpus (a b there, c here), k (2 there, 3 here);"
    with refuses(ConfigError, said, "another --slug", str(folder.path)):
        RunFolder(folder.path, dataclasses.replace(config, k=3, corpus=("c",)))
    assert TrainConfig.load(folder.path / "config.json") == config


def test_the_same_holds_when_it_is_done(folder: RunFolder, config: TrainConfig, refuses: Refuses) -> None:
    folder.save_weights(trainee_after(config, 1).finished())

    with refuses(ConfigError, "seed (0 there, 1 here)"):
        RunFolder(folder.path, dataclasses.replace(config, seed=1))


def test_a_run_that_never_began_gives_its_name_to_another_configuration(folder: RunFolder, config: TrainConfig) -> None:
    other = dataclasses.replace(config, layer=3)

    RunFolder(folder.path, other)

    assert TrainConfig.load(folder.path / "config.json") == other


@pytest.mark.parametrize(
    "change", [{"device": "cpu"}, {"checkpoint_seconds": 1.0}, {"cache_activations": True}], ids=str
)
def test_a_run_may_go_on_with_another_of_what_changes_no_result(
    folder: RunFolder, config: TrainConfig, change: dict[str, Any]
) -> None:
    folder.save_checkpoint(trainee_after(config, 1), PLACE)

    RunFolder(folder.path, dataclasses.replace(config, **change))


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"model": "m"}', '{"corpus": [], "future": 1}'], ids=ascii)
def test_a_damaged_configuration_is_said_plainly(
    folder: RunFolder, config: TrainConfig, text: str, refuses: Refuses
) -> None:
    folder.save_checkpoint(trainee_after(config, 1), PLACE)
    (folder.path / "config.json").write_text(text)

    with refuses(ConfigError, "config.json is not a training configuration", "remove the folder"):
        RunFolder(folder.path, config)


def test_weights_without_a_configuration_are_not_taken_for_this_run(
    folder: RunFolder, config: TrainConfig, refuses: Refuses
) -> None:
    folder.save_weights(trainee_after(config, 1).finished())
    (folder.path / "config.json").unlink()

    with refuses(ConfigError, "config.json is not a training configuration"):
        RunFolder(folder.path, config)


def test_a_folder_that_cannot_be_made_is_said_plainly(tmp_path: Path, config: TrainConfig, refuses: Refuses) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")

    with refuses(ConfigError, "cannot be written to", "--home"):
        RunFolder(tmp_path / "runs" / "one", config)


# Checkpoints


def test_a_trainee_comes_back_as_it_was(folder: RunFolder, config: TrainConfig) -> None:
    trainee = trainee_after(config, 3)
    folder.save_checkpoint(trainee, PLACE)
    restored = Trainee(config, d_in=8)

    assert folder.load_checkpoint(restored) == PLACE

    assert restored.n_tokens == 96
    for ours, theirs in zip(restored.sae.parameters(), trainee.sae.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
    assert restored.read_metrics() == trainee.read_metrics()


def test_without_checkpoints_there_is_no_place(folder: RunFolder, config: TrainConfig) -> None:
    assert folder.load_checkpoint(Trainee(config, d_in=8)) is None


def test_only_the_newest_two_stay(folder: RunFolder, config: TrainConfig) -> None:
    trainee = trainee_after(config, 0)
    for step in range(5):
        trainee.step(torch.randn(32, 8))
        folder.save_checkpoint(trainee, dataclasses.replace(PLACE, n_batches=step))

    assert checkpoints_in(folder) == [128, 160]
    assert files_in(folder) == ["checkpoint-000000000000128.pt", "checkpoint-000000000000160.pt", "config.json"]


def cut_off(data: bytes) -> bytes:
    return data[: len(data) // 2]


def changed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 4096]) + data[middle + 4096 :]


def of_something_else(_: bytes) -> bytes:
    return b"not a checkpoint at all"


def of_zeros(data: bytes) -> bytes:
    return bytes(len(data))


DAMAGES = [cut_off, changed, of_something_else, of_zeros, lambda _: b"", lambda _: b"PK\x03\x04 half"]
DAMAGE_NAMES = ["cut-off", "changed", "something-else", "zeros", "empty", "zip-header"]


@pytest.mark.parametrize("damage", DAMAGES, ids=DAMAGE_NAMES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    folder: RunFolder, config: TrainConfig, damage: Callable[[bytes], bytes]
) -> None:
    trainee = trainee_after(config, 1)
    folder.save_checkpoint(trainee, PLACE)
    before = copy.deepcopy(trainee.sae.state_dict())
    trainee.step(torch.randn(32, 8))
    folder.save_checkpoint(trainee, Place(3, 900, 11))
    newest = folder.path / "checkpoint-000000000000064.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    restored = Trainee(config, d_in=8)

    assert folder.load_checkpoint(restored) == PLACE

    assert restored.n_tokens == 32
    assert all(torch.equal(before[name], value) for name, value in restored.sae.state_dict().items())


@pytest.mark.parametrize("damage", DAMAGES, ids=DAMAGE_NAMES)
def test_when_all_checkpoints_are_damaged_it_is_said_plainly(
    folder: RunFolder, config: TrainConfig, damage: Callable[[bytes], bytes], refuses: Refuses
) -> None:
    trainee = trainee_after(config, 1)
    folder.save_checkpoint(trainee, PLACE)
    for path in folder.path.glob("checkpoint-*.pt"):
        path.write_bytes(damage(path.read_bytes()))

    with refuses(WeightsError, str(folder.path), "damaged", "remove that folder"):
        folder.load_checkpoint(Trainee(config, d_in=8))
    assert checkpoints_in(folder) == [32]


@pytest.mark.parametrize("key", ["trainee", "place"])
def test_a_checkpoint_that_lacks_a_part_is_damaged(
    folder: RunFolder, config: TrainConfig, key: str, refuses: Refuses
) -> None:
    folder.save_checkpoint(trainee_after(config, 1), PLACE)
    (path,) = folder.path.glob("checkpoint-*.pt")
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if name != key}, path)

    with refuses(WeightsError, "damaged"):
        folder.load_checkpoint(Trainee(config, d_in=8))


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(folder: RunFolder, config: TrainConfig) -> None:
    trainee = trainee_after(config, 0)
    for _ in range(4):
        trainee.step(torch.randn(32, 8))
        folder.save_checkpoint(trainee, PLACE)
    (folder.path / "checkpoint-000000000000128.pt").write_bytes(b"half")
    folder.load_checkpoint(trainee)
    assert trainee.n_tokens == 96

    for tokens in (97, 98):
        trainee.n_tokens = tokens
        folder.save_checkpoint(trainee, PLACE)

    assert checkpoints_in(folder) == [97, 98]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["gpu", "cpu"],
)
def test_a_checkpoint_that_does_not_fit_into_memory_is_not_called_damaged(
    folder: RunFolder, config: TrainConfig, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save_checkpoint(trainee_after(config, 1), PLACE)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)):
        folder.load_checkpoint(Trainee(config, d_in=8))


def test_what_a_killed_run_left_half_written_is_removed(folder: RunFolder, config: TrainConfig) -> None:
    (folder.path / "checkpoint-000000000000016.new").write_bytes(b"half")

    folder.save_checkpoint(trainee_after(config, 1), PLACE)

    assert files_in(folder) == ["checkpoint-000000000000032.pt", "config.json"]


# A full disk


def test_a_full_disk_leaves_the_checkpoints_before_and_nothing_half_written(
    folder: RunFolder, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    trainee = trainee_after(config, 1)
    folder.save_checkpoint(trainee, PLACE)
    trainee.step(torch.randn(32, 8))
    real_save = torch.save

    def save_half(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save_half)
    with refuses(DiskFullError, str(folder.path), "make room"):
        folder.save_checkpoint(trainee, PLACE)
    assert files_in(folder) == ["checkpoint-000000000000032.pt", "config.json"]

    monkeypatch.setattr(torch, "save", real_save)
    folder.save_checkpoint(trainee, PLACE)
    assert checkpoints_in(folder) == [32, 64]


def test_a_full_disk_at_the_end_leaves_the_checkpoints(
    folder: RunFolder, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    trainee = trainee_after(config, 1)
    folder.save_checkpoint(trainee, PLACE)
    finished = trainee.finished()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sae, "save_file", fail)
        with refuses(DiskFullError, "make room"):
            folder.save_weights(finished)
    assert checkpoints_in(folder) == [32]
    assert not folder.is_done

    folder.save_weights(finished)
    assert folder.is_done


def test_a_full_disk_before_anything_is_written_spoils_nothing(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    def half(self: TrainConfig, path: Path) -> None:
        path.write_text('{"model": ')
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TrainConfig, "save", half)
        with refuses(DiskFullError, "make room"):
            RunFolder(tmp_path / "one", config)

    assert files_in(RunFolder(tmp_path / "one", config)) == ["config.json"]


# The end


def test_finished_weights_take_the_place_of_checkpoints(folder: RunFolder, config: TrainConfig) -> None:
    trainee = trainee_after(config, 2)
    folder.save_checkpoint(trainee, PLACE)
    (folder.path / "checkpoint-000000000000099.new").write_bytes(b"half")
    assert not folder.is_done

    folder.save_weights(trainee.finished())

    assert folder.is_done
    assert files_in(folder) == ["config.json", "sae.json", "sae.safetensors"]
    assert torch.equal(load_sae(folder.path).W_dec, trainee.finished().W_dec)


def test_checkpoints_that_a_run_was_killed_before_it_removed_are_removed_by_the_next(
    folder: RunFolder, config: TrainConfig
) -> None:
    trainee = trainee_after(config, 2)
    folder.save_weights(trainee.finished())
    folder.save_checkpoint(trainee, PLACE)

    assert RunFolder(folder.path, config).is_done

    assert files_in(folder) == ["config.json", "sae.json", "sae.safetensors"]


def test_weights_of_which_only_one_file_was_written_are_not_done(folder: RunFolder, config: TrainConfig) -> None:
    folder.save_weights(trainee_after(config, 1).finished())
    (folder.path / "sae.json").unlink()

    assert not folder.is_done


# Metrics


def test_a_line_of_metrics_is_json_and_a_few_words(folder: RunFolder) -> None:
    said = folder.write_metrics(metrics_after(64))

    (line,) = metrics_of(folder.path)
    assert said == "FVU 0.123  L0 2.0  dead 25.0%"
    assert line.pop("seconds") >= 0
    assert abs(line.pop("at") - time.time()) < 60
    assert line == {"tokens": 64, "fvu": 0.123457, "l0": 2.0, "dead_share": 0.25, "loss": 0.5}
    assert folder.write_metrics(None) == ""
    assert len(metrics_of(folder.path)) == 1


def test_metrics_are_due_every_few_seconds(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not folder.metrics_are_due
    monkeypatch.setattr(run_folder, "_METRICS_SECONDS", 0.0)
    assert folder.metrics_are_due


def test_metrics_behind_the_checkpoint_that_a_run_goes_on_from_are_dropped(
    folder: RunFolder, config: TrainConfig
) -> None:
    for tokens in (16, 32, 48, 64):
        folder.write_metrics(metrics_after(tokens))
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"tokens": 5, "fvu"')  # killed while it wrote
    folder.save_checkpoint(trainee_after(config, 1), PLACE)

    again = RunFolder(folder.path, config)
    again.load_checkpoint(Trainee(config, d_in=8))
    again.write_metrics(metrics_after(40))

    assert [line["tokens"] for line in metrics_of(folder.path)] == [16, 32, 40]


def test_metrics_of_a_run_that_left_no_checkpoint_are_dropped(folder: RunFolder, config: TrainConfig) -> None:
    folder.write_metrics(metrics_after(16))

    folder.load_checkpoint(Trainee(config, d_in=8))

    assert metrics_of(folder.path) == []


def test_metrics_of_a_run_that_was_stopped_all_stay(folder: RunFolder, config: TrainConfig) -> None:
    folder.write_metrics(metrics_after(32))
    written = (folder.path / "metrics.jsonl").read_bytes()
    folder.save_checkpoint(trainee_after(config, 1), PLACE)

    folder.load_checkpoint(Trainee(config, d_in=8))

    assert (folder.path / "metrics.jsonl").read_bytes() == written


def test_numbers_that_do_not_exist_are_still_json(folder: RunFolder, config: TrainConfig) -> None:
    folder.write_metrics(dataclasses.replace(metrics_after(16), fvu=float("nan")))

    line = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["fvu"] is None


def test_a_folder_of_another_user_is_said_plainly(
    folder: RunFolder, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(torch, "save", refused)
    with refuses(ConfigError, "cannot be written to"):
        folder.save_checkpoint(trainee_after(config, 1), PLACE)
