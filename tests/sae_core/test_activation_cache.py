"""Activations kept on disk: the next SAE needs no model, and whatever is missing or damaged is made again."""

import dataclasses
import errno
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae_core import activation_cache
from sae_core import train as training
from sae_core.activation_cache import ActivationCache, CachingFiller
from sae_core.activations import FillingStopped, Place, Watch, batches
from sae_core.config import TrainConfig
from sae_core.errors import DiskFullError, ModelError
from sae_core.fit import Trainee
from sae_core.ranks import Ranks
from sae_core.records import ModelInfo
from sae_core.train import train, train_together
from tests.runs import same_weights, small_config, write_corpus
from tests.tiny import save_tiny_model

Refuses = Callable[..., AbstractContextManager[None]]
CPU = torch.device("cpu")
HOOKS = ("blocks.0.hook_mlp_in", "blocks.1.hook_resid_post")
INFO = ModelInfo(model_name="m", revision="1", architecture="A", n_layers=2, d_model=8)


class FromNowhere:
    """Fills buffers of 100 rows with numbers that depend on the place alone; notes which."""

    def __init__(self) -> None:
        self.filled: list[int] = []
        self.is_closed = False

    def fill(self, place: Place, watch: Watch) -> tuple[dict[str, torch.Tensor], int]:
        if watch.is_stopped():
            raise FillingStopped
        self.filled.append(place.buffer)
        generator = torch.Generator().manual_seed(place.n_contexts)
        return {name: 100 * torch.randn(100, 8, generator=generator) for name in HOOKS}, place.n_contexts + 7

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def cache(tmp_path: Path, corpus: Path) -> ActivationCache:
    cache = ActivationCache(tmp_path / "kept", small_config(Path("m"), corpus), HOOKS, 100)
    cache.remember(INFO)
    return cache


def filler_of(cache: ActivationCache, source: FromNowhere) -> CachingFiller:
    return CachingFiller(cache, lambda: source, device=CPU, ranks=Ranks())


def acts_of(cache: ActivationCache, source: FromNowhere, n: int) -> torch.Tensor:
    """The rows of the first n batches of 20, five to a buffer."""
    stream = batches(filler_of(cache, source), batch_tokens=20, seed=0, start=Place())
    return torch.cat([next(stream).acts[HOOKS[0]] for _ in range(n)])


# Buffers


def test_what_is_kept_is_served_again_bit_for_bit_and_needs_no_source(cache: ActivationCache) -> None:
    source, unused = FromNowhere(), FromNowhere()

    first, again = acts_of(cache, source, 15), acts_of(cache, unused, 15)

    assert torch.equal(first, again)
    assert (source.filled, unused.filled) == ([0, 1, 2], [])


def test_rounding_to_bfloat16_is_noise_of_a_hundred_thousandth_of_the_variance(cache: ActivationCache) -> None:
    exact = torch.cat([
        batch.acts[HOOKS[0]]
        for batch, _ in zip(batches(FromNowhere(), batch_tokens=20, seed=0, start=Place()), range(15), strict=False)
    ])  # fmt: skip

    kept = acts_of(cache, FromNowhere(), 15)

    assert 0 < float((kept - exact).square().sum() / exact.square().sum()) < 2e-5


def test_a_stopped_filling_goes_on_behind_the_last_buffer_that_was_kept(cache: ActivationCache) -> None:
    first = FromNowhere()
    acts_of(cache, first, 10)
    stopped = FromNowhere()
    filler = filler_of(cache, stopped)
    with pytest.raises(FillingStopped):
        filler.fill(Place(2, 14, 10), Watch(is_stopped=lambda: True))

    goes_on = FromNowhere()
    acts_of(cache, goes_on, 20)

    assert (first.filled, stopped.filled, goes_on.filled) == ([0, 1], [], [2, 3])


def test_files_take_two_bytes_a_number(cache: ActivationCache) -> None:
    acts_of(cache, FromNowhere(), 15)

    sizes = [path.stat().st_size for path in sorted(cache.folder.glob("*.safetensors"))]

    assert len(sizes) == 3
    assert all(0 <= size - 100 * 8 * 2 * len(HOOKS) < 1000 for size in sizes)


def cut_off(data: bytes) -> bytes:
    return data[:-40]


def changed_in_the_middle(data: bytes) -> bytes:
    return data[:-400] + bytes(255 - byte for byte in data[-400:-390]) + data[-390:]


DAMAGES = [cut_off, changed_in_the_middle, lambda data: data[:20], lambda _: b"", lambda data: bytes(len(data)), None]
DAMAGE_NAMES = ["cut-off", "changed", "header-cut-off", "empty", "zeros", "gone"]


@pytest.mark.parametrize("damage", DAMAGES, ids=DAMAGE_NAMES)
def test_a_damaged_or_missing_buffer_is_made_again(
    cache: ActivationCache, damage: Callable[[bytes], bytes] | None
) -> None:
    whole = acts_of(cache, FromNowhere(), 15)
    path = cache.folder / "000001.safetensors"
    before = path.read_bytes()
    if damage:
        path.write_bytes(damage(before))
    else:
        path.unlink()
    source = FromNowhere()

    assert torch.equal(acts_of(cache, source, 15), whole)

    assert source.filled == [1]
    assert torch.equal(acts_of(cache, FromNowhere(), 15), whole)
    assert len(path.read_bytes()) == len(before)


def test_holding_enough_means_whole_buffers_from_the_first_on(cache: ActivationCache) -> None:
    acts_of(cache, FromNowhere(), 15)

    assert cache.holds(15, batch_tokens=20)
    assert cache.holds(9, batch_tokens=30)  # ten rows of each buffer are left over
    assert not cache.holds(16, batch_tokens=20)
    assert not cache.holds(10, batch_tokens=30)
    (cache.folder / "000001.safetensors").write_bytes(b"")
    assert cache.holds(5, batch_tokens=20)
    assert not cache.holds(6, batch_tokens=20)


def test_closing_closes_the_source_if_there_was_one(cache: ActivationCache) -> None:
    source, unused = FromNowhere(), FromNowhere()
    for used, n in ((source, 1), (unused, 0)):
        filler = filler_of(cache, used)
        for _ in range(n):
            filler.fill(Place(), Watch())
        filler.close()

    assert (source.is_closed, unused.is_closed) == (True, False)


def test_a_full_disk_leaves_no_half_of_a_buffer(
    cache: ActivationCache, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    def half(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    acts_of(cache, FromNowhere(), 5)
    with monkeypatch.context() as patch:
        patch.setattr(activation_cache, "save_file", half)
        with refuses(DiskFullError, "make room"):
            acts_of(cache, FromNowhere(), 10)
    assert sorted(path.name for path in cache.folder.iterdir()) == ["000000.safetensors", "cache.json"]

    acts_of(cache, FromNowhere(), 10)
    assert len(list(cache.folder.glob("*.safetensors"))) == 2


# What the activations are of


def test_whatever_decides_the_activations_is_another_folder(tmp_path: Path, corpus: Path) -> None:
    config = small_config(Path("m"), corpus)

    def folder(hooks: tuple[str, ...] = HOOKS, buffer_tokens: int = 100, **changes: Any) -> Path:
        return ActivationCache(tmp_path, dataclasses.replace(config, **changes), hooks, buffer_tokens).folder

    same = folder()
    others = [
        folder(model="other"),
        folder(dtype="bfloat16"),
        folder(context_size=16),
        folder(prepend_bos=False),
        folder(text_field="body"),
        folder(data_seed=1),
        folder(corpus=(str(corpus / "00.txt"),)),
        folder(buffer_tokens=200),
        folder(HOOKS[:1]),
    ]
    assert len({same, *others}) == 1 + len(others)
    for change in ({"k": 2}, {"d_sae": 32}, {"seed": 3}, {"architecture": "relu"}, {"tokens": 9999}, {"device": None}):
        assert folder(**change) == same
    assert folder(HOOKS[::-1]) == same

    (corpus / "07.txt").write_text("Another text.")
    assert folder() != same


def test_buffers_of_another_revision_of_the_model_are_removed(cache: ActivationCache) -> None:
    acts_of(cache, FromNowhere(), 5)
    cache.remember(INFO)
    assert cache.holds(5, batch_tokens=20)

    cache.remember(dataclasses.replace(INFO, revision="2"))

    assert not cache.holds(1, batch_tokens=20)
    assert cache.model_info() == dataclasses.replace(INFO, revision="2")


@pytest.mark.parametrize("text", [None, "", "[]", '{"model": "m"}', '{"model_info": {"name": "m"}}'], ids=str)
def test_buffers_of_nobody_knows_which_model_are_removed(cache: ActivationCache, text: str | None) -> None:
    acts_of(cache, FromNowhere(), 5)
    path = cache.folder / "cache.json"
    path.unlink() if text is None else path.write_text(text)
    assert cache.model_info() is None

    cache.remember(INFO)

    assert not cache.holds(1, batch_tokens=20)
    assert cache.model_info() == INFO


def test_the_folder_says_in_words_what_it_is_of(cache: ActivationCache, corpus: Path) -> None:
    described = json.loads((cache.folder / "cache.json").read_text())

    assert described["hooks"] == list(HOOKS)
    assert described["context_size"] == 32
    assert any(str(corpus) in line for line in described["corpus"])


def test_what_a_killed_run_left_half_written_is_removed_after_an_hour(cache: ActivationCache) -> None:
    old, new = cache.folder / "000003.77.new", cache.folder / "000004.78.new"
    for path, age in ((old, 7200), (new, 0)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))

    cache.remember(INFO)

    assert (old.exists(), new.exists()) == (False, True)


# Runs


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


@pytest.fixture
def config(model: Path, corpus: Path) -> TrainConfig:
    return small_config(model, corpus, cache_activations=True)


@pytest.mark.slow
def test_the_next_sae_needs_no_model_and_comes_out_as_if_it_had_been_the_first(
    config: TrainConfig, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(config, k=7, d_sae=48, seed=2, architecture="batchtopk")
    train(other, runs=tmp_path / "a" / "runs", slug="first")
    train(config, runs=tmp_path / "b" / "runs", slug="first")
    (folder,) = (tmp_path / "b" / "activations").iterdir()
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size == pytest.approx(config.tokens * 32 * 2, rel=0.05)

    with monkeypatch.context() as patch:
        patch.setattr(training, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
        info = train(other, runs=tmp_path / "b" / "runs", slug="with-model")
        model.rename(tmp_path / "away")
        without = train(other, runs=tmp_path / "b" / "runs", slug="without-model")

    assert info is not None and without is not None
    assert info.model == without.model
    for slug in ("with-model", "without-model"):
        assert same_weights(tmp_path / "b" / "runs" / slug, tmp_path / "a" / "runs" / "first")


@pytest.mark.slow
def test_a_longer_run_on_what_is_kept_makes_only_the_rest(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = dataclasses.replace(config, tokens=2 * config.tokens)
    train(longer, runs=tmp_path / "a" / "runs", slug="whole")
    train(config, runs=tmp_path / "b" / "runs", slug="short")
    (folder,) = (tmp_path / "b" / "activations").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(before) == 4

    train(longer, runs=tmp_path / "b" / "runs", slug="long")

    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(after) == 8
    assert before.items() <= after.items()
    assert same_weights(tmp_path / "b" / "runs" / "long", tmp_path / "a" / "runs" / "whole")


@pytest.mark.slow
def test_a_stopped_run_with_a_cache_ends_the_same(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, runs=tmp_path / "a" / "runs", slug="one")
    real = Trainee.step

    def step(self: Trainee, *args: Any) -> None:
        real(self, *args)
        if self.n_tokens == 6 * 128:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainee, "step", step)
    assert train(config, runs=tmp_path / "b" / "runs", slug="one") is None
    assert train(config, runs=tmp_path / "b" / "runs", slug="one") is not None

    assert same_weights(tmp_path / "b" / "runs" / "one", tmp_path / "a" / "runs" / "one")


@pytest.mark.slow
def test_a_buffer_found_damaged_on_the_way_is_made_by_the_model_again(config: TrainConfig, tmp_path: Path) -> None:
    runs = tmp_path / "home" / "runs"
    train(config, runs=runs, slug="first")
    (path,) = (tmp_path / "home" / "activations").glob("*/000002.safetensors")
    kept = load_file(path)["blocks.1.hook_resid_post"].clone()  # not the file's own bytes
    path.write_bytes(changed_in_the_middle(path.read_bytes()))  # its header is whole

    train(dataclasses.replace(config, checkpoint_seconds=9.0), runs=runs, slug="second")

    assert same_weights(runs / "first", runs / "second")
    assert torch.equal(load_file(path)["blocks.1.hook_resid_post"], kept)


def test_a_buffer_found_damaged_when_the_model_is_gone_is_said(
    config: TrainConfig, model: Path, tmp_path: Path, refuses: Refuses
) -> None:
    runs = tmp_path / "home" / "runs"
    train(config, runs=runs, slug="first")
    (path,) = (tmp_path / "home" / "activations").glob("*/000002.safetensors")
    path.write_bytes(changed_in_the_middle(path.read_bytes()))
    model.rename(tmp_path / "away")

    with refuses(ModelError, "There is no model folder"):
        train(config, runs=runs, slug="second")


@pytest.mark.slow
def test_another_model_in_the_same_folder_is_noticed(config: TrainConfig, model: Path, tmp_path: Path) -> None:
    runs = tmp_path / "home" / "runs"
    train(config, runs=runs, slug="first")
    save_tiny_model(model, seed=1)
    train(config, runs=tmp_path / "other" / "runs", slug="fresh")

    train(config, runs=runs, slug="second")

    assert not same_weights(runs / "second", runs / "first")
    assert same_weights(runs / "second", tmp_path / "other" / "runs" / "fresh")


@pytest.mark.slow
def test_several_hooks_share_one_cache(config: TrainConfig, tmp_path: Path) -> None:
    configs = {"a": config, "b": dataclasses.replace(config, layer=0, hook="mlp_in", target_hook="mlp_out")}
    train_together(configs, runs=tmp_path / "home" / "runs")

    (folder,) = (tmp_path / "home" / "activations").iterdir()
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size == pytest.approx(3 * config.tokens * 32 * 2, rel=0.05)
    train(configs["a"], runs=tmp_path / "other" / "runs", slug="a")
    assert same_weights(tmp_path / "home" / "runs" / "a", tmp_path / "other" / "runs" / "a")
