"""Training runs: they learn, end the same however they were interrupted, and say what is wrong with their input."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_core import activations, memory, run_folder
from sae_core import train as training
from sae_core.config import TrainConfig
from sae_core.errors import ConfigError, CorpusError, DiskFullError, OutOfMemoryError, TrainingError, WeightsError
from sae_core.fit import Trainee
from sae_core.progress import progress_bar, say
from sae_core.run_folder import RunFolder
from sae_core.sae import load_sae
from sae_core.train import train, train_together
from tests.runs import metrics_of, same_weights, small_config, write_corpus

Refuses = Callable[..., AbstractContextManager[None]]
ROOT = Path(__file__).parents[2]
N_STEPS = 16
# SAEs that can be trained together and have next to nothing in common.
TOGETHER: dict[str, dict[str, Any]] = {
    "topk": {},
    "batchtopk": {"architecture": "batchtopk", "d_sae": 96, "k": 3, "seed": 5, "layer": 2},
    "jumprelu": {"architecture": "jumprelu", "d_sae": 80, "layer": 0, "hook": "mlp_post"},
    "transcoder": {"hook": "mlp_in", "target_hook": "mlp_out", "layer": 1, "k": 7},
}


@pytest.fixture(autouse=True, scope="module")
def _metrics_at_the_end_only() -> Iterator[None]:
    """However slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "_METRICS_SECONDS", 1e9)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def shared_config(tiny_llama: Path, corpus: Path) -> TrainConfig:
    return small_config(tiny_llama, corpus)


@pytest.fixture
def config(shared_config: TrainConfig) -> TrainConfig:
    return shared_config


@pytest.fixture(scope="module")
def alone(shared_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of `TOGETHER`, each trained alone and at one stretch: what all others must come to."""
    runs = tmp_path_factory.mktemp("alone")
    for slug, changes in TOGETHER.items():
        assert train(dataclasses.replace(shared_config, **changes), runs=runs, slug=slug) is not None
    return runs


def all_of(config: TrainConfig) -> dict[str, TrainConfig]:
    return {slug: dataclasses.replace(config, **changes) for slug, changes in TOGETHER.items()}


@contextmanager
def steps_counted(at: dict[int, Callable[[], None]] | None = None) -> Iterator[list[int]]:
    """While open, notes every step of every trainee; behind step `n` (counted from 1) it calls `at[n]`."""
    real, seen = Trainee.step, list[int]()

    def step(self: Trainee, *args: Any) -> None:
        real(self, *args)
        seen.append(self.n_tokens)
        (at or {}).get(len(seen), lambda: None)()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainee, "step", step)
        yield seen


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def checkpoints_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("checkpoint-*.pt"))


# Learning


def test_it_learns_and_leaves_weights_config_and_metrics(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, tokens=8192, buffer_tokens=1024, learning_rate=0.02)
    info = train(config, runs=tmp_path, slug="one")
    assert info is not None
    folder = tmp_path / "one"
    sae = load_sae(folder)
    assert (sae.d_in, sae.d_sae, sae.k) == (info.d_in, 64, 4)
    assert TrainConfig.load(folder / "config.json") == config
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    last = metrics_of(folder)[-1]
    assert last["tokens"] == 8192
    assert last["fvu"] < 0.7
    assert last["l0"] <= 4
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "metrics.jsonl", "progress.json", "run.jsonl", "sae.json", "sae.safetensors",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_saved_sae_reads_the_models_own_activations(config: TrainConfig, tmp_path: Path) -> None:
    from sae_core.corpus import iter_documents
    from sae_core.loading import load_model
    from sae_core.tokens import framing, iter_contexts
    from tests.counted import counted_activations

    info = train(dataclasses.replace(config, tokens=16_384), runs=tmp_path, slug="one")
    assert info is not None
    model = load_model(config.model)
    frame = framing(model.tokenizer)
    contexts = list(iter_contexts(iter_documents(config.corpus), model.tokenizer, context_size=32, frame=frame))
    acts = counted_activations(model, contexts, hook_name=info.hook_name, frame=frame)
    error = (acts - load_sae(tmp_path / "one")(acts)).square().sum()
    assert error / (acts - acts.mean(dim=0)).square().sum() < 0.7


@pytest.mark.slow
def test_a_transcoder_learns_to_predict_its_target(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, hook="mlp_in", target_hook="mlp_out", tokens=16_384, buffer_tokens=1024, k=8)
    train(config, runs=tmp_path, slug="one")

    assert load_sae(tmp_path / "one").is_transcoder
    assert metrics_of(tmp_path / "one")[-1]["fvu"] < 0.9


def test_the_same_configuration_again_trains_and_loads_nothing_anew(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(config, runs=tmp_path, slug="one")
    written = (tmp_path / "one" / "sae.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(training, "load_model", lambda *_, **__: pytest.fail("the weights are not needed"))
    monkeypatch.setattr(memory, "free_bytes", lambda _: 0)

    assert train(config, runs=tmp_path, slug="one") == first
    assert (tmp_path / "one" / "sae.safetensors").stat().st_mtime_ns == written


def test_nothing_of_a_run_stays_in_the_process(config: TrainConfig, tmp_path: Path) -> None:
    with steps_counted({3: interrupt}):
        train(config, runs=tmp_path, slug="one")
    assert "saescope-contexts" not in [thread.name for thread in threading.enumerate()]

    train(config, runs=tmp_path, slug="one")
    assert "saescope-contexts" not in [thread.name for thread in threading.enumerate()]


# Together


@pytest.mark.slow
def test_saes_trained_together_are_those_trained_alone(config: TrainConfig, alone: Path, tmp_path: Path) -> None:
    infos = train_together(all_of(config), runs=tmp_path)

    assert infos is not None
    assert [info.slug for info in infos] == list(TOGETHER)
    for slug in TOGETHER:
        assert same_weights(tmp_path / slug, alone / slug), slug
        ours, theirs = (metrics_of(runs / slug) for runs in (tmp_path, alone))
        assert [{**line, "seconds": 0, "at": 0} for line in ours] == [
            {**line, "seconds": 0, "at": 0} for line in theirs
        ]


def test_the_seed_and_the_order_of_the_text_matter(config: TrainConfig, alone: Path, tmp_path: Path) -> None:
    for slug, changes in {"seed": {"seed": 1}, "order": {"data_seed": 1}}.items():
        train(dataclasses.replace(config, **changes), runs=tmp_path, slug=slug)
        assert not same_weights(tmp_path / slug, alone / "topk")


def test_saes_that_need_other_batches_are_not_trained_together(
    config: TrainConfig, tmp_path: Path, refuses: Refuses
) -> None:
    other = dataclasses.replace(config, tokens=4096, batch_tokens=64)

    with refuses(ConfigError, "the same tokens, batch_tokens", "one by one"):
        train_together({"one": config, "two": other}, runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_member_that_is_done_is_left_alone_and_a_new_one_is_trained(
    config: TrainConfig, alone: Path, tmp_path: Path
) -> None:
    configs = all_of(config)
    shutil.copytree(alone / "topk", tmp_path / "topk")
    written = (tmp_path / "topk" / "sae.safetensors").stat().st_mtime_ns

    assert train_together({slug: configs[slug] for slug in ("topk", "batchtopk")}, runs=tmp_path) is not None

    assert (tmp_path / "topk" / "sae.safetensors").stat().st_mtime_ns == written
    assert same_weights(tmp_path / "batchtopk", alone / "batchtopk")


# Being stopped


def test_a_stopped_run_goes_on_from_its_checkpoint(config: TrainConfig, alone: Path, tmp_path: Path) -> None:
    with steps_counted({6: interrupt}) as seen:
        assert train(config, runs=tmp_path, slug="one") is None
        assert checkpoints_in(tmp_path / "one") == [6 * 128]
        assert not (tmp_path / "one" / "sae.safetensors").exists()
        assert train(config, runs=tmp_path, slug="one") is not None
    assert seen == [128 * step for step in range(1, N_STEPS + 1)]  # no step was done twice, none was left out
    assert [line["tokens"] for line in metrics_of(tmp_path / "one")] == [2048]
    assert metrics_of(tmp_path / "one")[0]["fvu"] == metrics_of(alone / "topk")[0]["fvu"]  # also of the stopped part
    assert same_weights(tmp_path / "one", alone / "topk")


@pytest.mark.slow
def test_a_run_that_is_stopped_after_every_single_step_ends_the_same(
    config: TrainConfig, alone: Path, tmp_path: Path
) -> None:
    for step in range(1, N_STEPS):
        with steps_counted({1: interrupt}) as seen:
            assert train(config, runs=tmp_path, slug="one") is None
        assert seen == [step * 128]
    assert train(config, runs=tmp_path, slug="one") is not None

    assert same_weights(tmp_path / "one", alone / "topk")


@pytest.mark.slow
def test_saes_trained_together_and_stopped_end_the_same(config: TrainConfig, alone: Path, tmp_path: Path) -> None:
    for stop_at in (1, 5, 2):  # behind steps 1, 6 (within a buffer) and 8 (at its end) of each
        with steps_counted({len(TOGETHER) * stop_at: interrupt}):
            assert train_together(all_of(config), runs=tmp_path) is None
    assert {tuple(checkpoints_in(tmp_path / slug)) for slug in TOGETHER} == {(6 * 128, 8 * 128)}

    assert train_together(all_of(config), runs=tmp_path) is not None

    assert [slug for slug in TOGETHER if not same_weights(tmp_path / slug, alone / slug)] == []


def test_a_run_stopped_after_its_last_step_is_done(config: TrainConfig, alone: Path, tmp_path: Path) -> None:
    with steps_counted({N_STEPS: interrupt}):
        assert train(config, runs=tmp_path, slug="one") is not None
    assert same_weights(tmp_path / "one", alone / "topk")


@pytest.mark.slow
def test_a_joint_run_that_dies_between_two_checkpoints_of_its_members_ends_the_same(
    config: TrainConfig, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, saved = RunFolder.save_checkpoint, []

    def die_at_the_tenth(self: RunFolder, *args: Any) -> None:
        saved.append(self.path.name)
        if len(saved) == 4 * 5 + 3:
            raise SystemExit("killed")
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", die_at_the_tenth)
        with pytest.raises(SystemExit):
            train_together(all_of(dataclasses.replace(config, checkpoint_seconds=0.0)), runs=tmp_path)
    newest = [checkpoints_in(tmp_path / slug)[-1] // 128 for slug in TOGETHER]
    assert newest == [6, 6, 5, 5]

    with steps_counted() as seen:
        assert train_together(all_of(config), runs=tmp_path) is not None

    assert len(seen) == 2 * 10 + 2 * 11
    assert [slug for slug in TOGETHER if not same_weights(tmp_path / slug, alone / slug)] == []


@pytest.mark.slow
def test_a_new_member_catches_up_with_one_that_was_stopped(config: TrainConfig, alone: Path, tmp_path: Path) -> None:
    configs = all_of(config)
    with steps_counted({9: interrupt}):
        assert train(configs["topk"], runs=tmp_path, slug="topk") is None

    with steps_counted() as seen:
        train_together({slug: configs[slug] for slug in ("topk", "transcoder")}, runs=tmp_path)

    assert len(seen) == 7 + N_STEPS
    assert same_weights(tmp_path / "topk", alone / "topk")
    assert same_weights(tmp_path / "transcoder", alone / "transcoder")


KILLED = """
import sys, time
from pathlib import Path
import torch
from sae_core import run_folder
from sae_core.config import TrainConfig
from sae_core.fit import Trainee
from sae_core.train import train_together

torch.set_num_threads(1)
run_folder._METRICS_SECONDS = 0.0
real = Trainee.step
Trainee.step = lambda self, *args: (real(self, *args), time.sleep(0.02))[0]
folder, runs = Path(sys.argv[1]), Path(sys.argv[2])
train_together({path.stem: TrainConfig.load(path) for path in sorted(folder.glob("*.json"))}, runs=runs)
"""


@pytest.mark.slow
def test_kill_minus_nine_loses_nothing_but_time(config: TrainConfig, alone: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(config, checkpoint_seconds=0.05)
    (tmp_path / "jobs").mkdir()
    for slug, own in all_of(config).items():
        own.save(tmp_path / "jobs" / f"{slug}.json")
    runs = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "jobs"), str(runs)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while max(checkpoints_in(runs / "transcoder"), default=0) < 6 * 128 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = {slug: checkpoints_in(runs / slug) for slug in TOGETHER}
    assert all(1 <= len(kept) <= 3 for kept in before.values()), before
    measured = metrics_of(runs / "topk")
    assert measured[-1]["tokens"] >= before["topk"][-1]

    with steps_counted() as seen:
        for slug, own in all_of(config).items():  # alone, which must not matter
            assert train(own, runs=runs, slug=slug) is not None

    assert len(seen) == sum(N_STEPS - kept[-1] // 128 for kept in before.values())
    assert [slug for slug in TOGETHER if not same_weights(runs / slug, alone / slug)] == []
    tokens = [line["tokens"] for line in metrics_of(runs / "topk")]
    assert tokens == sorted(set(tokens))


# Being stopped while a buffer is filled


@pytest.fixture
def slow_passes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Forward passes of 128 tokens that take 0.1 s; the times at which they began."""
    real, began = activations.counted, list[float]()

    def counted(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        began.append(time.monotonic())
        time.sleep(0.1)
        return real(*args, **kwargs)

    monkeypatch.setitem(activations.FORWARD_TOKENS, "cpu", 128)
    monkeypatch.setattr(activations, "counted", counted)
    return began


def interrupt_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, interrupt)
    timer.start()
    return timer


@pytest.mark.slow
def test_ctrl_c_while_the_first_buffer_is_filled_ends_at_once(
    config: TrainConfig, tmp_path: Path, slow_passes: list[float]
) -> None:
    timer = threading.Thread(target=lambda: (wait_for(lambda: len(slow_passes) >= 2), interrupt()))
    timer.start()
    config = dataclasses.replace(config, buffer_tokens=100_000, tokens=1_000_000)

    assert train(config, runs=tmp_path, slug="one") is None

    assert len(slow_passes) <= 4
    assert not list((tmp_path / "one").glob("*.pt")) and not list((tmp_path / "one").glob("*.safetensors"))


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.slow
def test_ctrl_c_while_a_later_buffer_is_filled_leaves_the_last_step_and_does_not_fill_the_one_before_again(
    config: TrainConfig, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(activations.FORWARD_TOKENS, "cpu", 128)
    real, n_passes = activations.counted, []

    def counted(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        n_passes.append(1)
        if len(n_passes) == 7:
            interrupt()
        return real(*args, **kwargs)

    train(config, runs=tmp_path, slug="whole")  # with passes of this size
    monkeypatch.setattr(activations, "counted", counted)
    with steps_counted() as seen:
        assert train(config, runs=tmp_path, slug="one") is None
        assert (seen, checkpoints_in(tmp_path / "one")) == ([128, 256, 384, 512], [512])
        n_before = len(n_passes)
        assert train(config, runs=tmp_path, slug="one") is not None

    assert n_before == 7
    assert len(n_passes) - 7 < 3 * 6
    assert same_weights(tmp_path / "one", tmp_path / "whole")


def test_while_a_buffer_is_filled_the_user_sees_how_far_it_is(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(activations.FORWARD_TOKENS, "cpu", 128)
    monkeypatch.setattr(activations, "_PASSES_AT_ONCE", 1)
    said: list[str] = []
    monkeypatch.setattr(training, "say", lambda _, text: said.append(text))

    train(dataclasses.replace(config, tokens=512), runs=tmp_path, slug="one")

    shares = [int(text.removeprefix("filling the buffer ").removesuffix("%")) for text in said if "filling" in text]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] > 50
    assert said[-1].startswith("FVU ")


def test_what_is_said_behind_the_bar_shows_no_more_often_than_the_bar_moves(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=100, what="training") as bar:  # no terminal: a line every ten seconds
        begun = capsys.readouterr().err
        for share in (1, 2, 3):
            say(bar, f"filling the buffer {share}%")
        assert capsys.readouterr().err == ""
        bar.last_print_t -= 11
        say(bar, "filling the buffer 4%")
        say(bar, "filling the buffer 5%")
        shown = capsys.readouterr().err
    assert "training" in begun
    assert "filling the buffer 4%" in shown and "5%" not in shown.replace("filling the buffer 4%", "")
    with progress_bar(total=100, what="training", is_shown=False) as bar:
        say(bar, "never shown")
    assert "never" not in capsys.readouterr().err


# Checkpoints and the disk


def test_another_configuration_under_the_same_name_is_refused(
    config: TrainConfig, alone: Path, refuses: Refuses
) -> None:
    with refuses(ConfigError, "another k (4 there, 2 here), seed (0 there, 1 here); give this one another --slug"):
        train(dataclasses.replace(config, k=2, seed=1), runs=alone, slug="topk")


def test_a_run_whose_checkpoints_are_damaged_is_said_plainly(
    config: TrainConfig, tmp_path: Path, refuses: Refuses
) -> None:
    with steps_counted({2: interrupt}):
        train(config, runs=tmp_path, slug="one")
    for path in (tmp_path / "one").glob("checkpoint-*.pt"):
        path.write_bytes(b"PK\x03\x04 half")

    with refuses(WeightsError, "damaged"):
        train(config, runs=tmp_path, slug="one")


def test_a_half_written_newest_checkpoint_costs_steps_and_nothing_else(
    config: TrainConfig, alone: Path, tmp_path: Path
) -> None:
    with steps_counted({7: interrupt}):
        train(dataclasses.replace(config, checkpoint_seconds=0.0), runs=tmp_path, slug="one")
    newest = max((tmp_path / "one").glob("checkpoint-*.pt"))
    newest.write_bytes(newest.read_bytes()[:5000])

    with steps_counted() as seen:
        train(config, runs=tmp_path, slug="one")

    assert len(seen) == N_STEPS - 6
    assert same_weights(tmp_path / "one", alone / "topk")


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    config: TrainConfig, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    real_save, saves = torch.save, []

    def save_until_full(state: object, file: Any) -> None:
        saves.append(1)
        if len(saves) == 4:
            raise OSError(28, "No space left on device")
        real_save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_until_full)
        with refuses(DiskFullError, "make room and run the same command again"):
            train(dataclasses.replace(config, checkpoint_seconds=0.0), runs=tmp_path, slug="one")
    assert checkpoints_in(tmp_path / "one") == [2 * 128, 3 * 128]

    assert train(config, runs=tmp_path, slug="one") is not None
    assert same_weights(tmp_path / "one", alone / "topk")


def test_a_run_that_was_stopped_at_its_end_with_the_disk_full_takes_no_step_too_many(
    config: TrainConfig, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, steps_counted({N_STEPS: interrupt}):
        patch.setattr(RunFolder, "save_weights", full)
        with pytest.raises(OSError, match="No space"):
            train(config, runs=tmp_path, slug="one")
    assert checkpoints_in(tmp_path / "one") == [N_STEPS * 128]

    with steps_counted() as seen:
        assert train(config, runs=tmp_path, slug="one") is not None

    assert seen == []
    assert same_weights(tmp_path / "one", alone / "topk")


# What is wrong with the input


def test_a_layer_that_does_not_exist_is_said_before_the_weights_are_loaded(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_model", lambda *_, **__: pytest.fail("the weights were loaded"))
        with refuses(ConfigError, "no layer 9"):
            train(dataclasses.replace(config, layer=9), runs=tmp_path, slug="one")
        with refuses(ConfigError, "no layer 7"):
            train(dataclasses.replace(config, target_hook="mlp_out", target_layer=7), runs=tmp_path, slug="transcoder")

    assert train(dataclasses.replace(config, tokens=128), runs=tmp_path, slug="one") is not None  # the name is free


def test_a_run_that_cannot_fit_is_refused_before_the_weights_are_loaded(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setattr(training, "load_model", lambda *_, **__: pytest.fail("the weights were loaded"))
    monkeypatch.setattr(memory, "free_bytes", lambda _: 100_000_000)

    with refuses(
        ConfigError, "needs about 0.", "0.1 GB are free on cpu", "--d-sae", "--batch-tokens", "--buffer-tokens"
    ):
        train(config, runs=tmp_path, slug="one")


@pytest.mark.parametrize(
    ("text", "said"), [("", "no text"), ("Too short.", "fewer than one context")], ids=["empty", "short"]
)
def test_too_little_text_is_said(config: TrainConfig, tmp_path: Path, text: str, said: str, refuses: Refuses) -> None:
    (tmp_path / "a.txt").write_text(text)

    with refuses(CorpusError, said):
        train(dataclasses.replace(config, corpus=(str(tmp_path / "a.txt"),)), runs=tmp_path, slug="one")


def test_a_corpus_that_breaks_off_in_the_middle_is_said_and_leaves_no_thread(
    config: TrainConfig, tmp_path: Path, refuses: Refuses
) -> None:
    lines = ['{"text": "' + "The whale sang all night. " * 20 + '"}'] * 30
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "no json"]))
    config = dataclasses.replace(config, corpus=(str(tmp_path / "a.jsonl"),), buffer_tokens=100_000, tokens=200_000)

    with refuses(CorpusError, "a.jsonl line 31 is not JSON"):
        train(config, runs=tmp_path / "runs", slug="one")
    assert "saescope-contexts" not in [thread.name for thread in threading.enumerate()]


def test_a_batch_that_is_not_numbers_leaves_the_last_checkpoint(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    real = Trainee.step

    def step(self: Trainee, acts: torch.Tensor, *args: Any) -> None:
        real(self, acts * (float("nan") if self.n_tokens == 5 * 128 else 1), *args)

    monkeypatch.setattr(Trainee, "step", step)
    with refuses(TrainingError, "Batch 6 of the activations holds NaN"):
        train(dataclasses.replace(config, checkpoint_seconds=0.0), runs=tmp_path, slug="one")
    assert checkpoints_in(tmp_path / "one") == [4 * 128, 5 * 128]


def real_allocation_failure() -> RuntimeError:
    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    pytest.fail("a machine with an exabyte of memory")


@pytest.mark.parametrize("place", ["step", "filling"])
@pytest.mark.parametrize("kind", ["gpu", "cpu", "python"])
def test_running_out_of_memory_is_one_sentence_that_says_what_to_lower(
    kind: str, place: str, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    error = {
        "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nGPU 0 has …"),
        "cpu": real_allocation_failure(),
        "python": MemoryError(),
    }[kind]

    def fail(*_: object, **__: object) -> None:
        raise error

    if place == "step":
        monkeypatch.setattr(Trainee, "step", fail)
    else:
        monkeypatch.setattr(activations, "counted", fail)
    with refuses(OutOfMemoryError, "--batch-tokens, --buffer-tokens or --d-sae", "--dtype bfloat16", "same command"):
        train(config, runs=tmp_path, slug="one")


def test_other_errors_of_torch_are_not_called_a_lack_of_memory(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(Trainee, "step", fail)
    with pytest.raises(RuntimeError, match="The size of tensor a"):
        train(config, runs=tmp_path, slug="one")


# The end of the process

ENDS = """
import itertools, time
from sae_core.activations import _Ahead

def contexts():
    for number in itertools.count():
        if number % 1000 == 999:
            time.sleep(0.01)
        yield number

ahead = _Ahead(contexts())
for _ in range(10_000):
    ahead.take(lambda: False)
print("taken", flush=True)
"""


@pytest.mark.slow
def test_a_thread_that_still_reads_the_corpus_keeps_no_process_from_ending() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDS], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "taken\n"
    _, stderr = process.communicate(timeout=20)

    assert (process.returncode, stderr) == (0, "")


# Names


@pytest.mark.parametrize(
    ("model", "changes", "slug"),
    [
        ("demo", {}, "demo-l1-64"),
        ("meta-llama/Llama-3.2-1B", {"hook": "mlp_out"}, "llama-3.2-1b-l1-mlp_out-64"),
        ("./my model/", {}, "my-model-l1-64"),
        ("demo", {"architecture": "batchtopk"}, "demo-l1-batchtopk-64"),
        ("demo", {"hook": "mlp_in", "target_hook": "mlp_out"}, "demo-l1-mlp_in-to-mlp_out-64"),
    ],
    ids=str,
)
def test_slugs_are_made_from_what_is_trained_on_what(
    config: TrainConfig, model: str, changes: dict[str, Any], slug: str
) -> None:
    assert training.default_slug(dataclasses.replace(config, model=model, **changes)) == slug
