"""What an index in the making leaves on disk: checkpoints, shards, more text, and who is at work."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_core import evaluate
from sae_core.config import IndexConfig
from sae_core.errors import BusyError, ConfigError
from sae_core.holding import held
from sae_core.index import build_index, index_shard, merge_shards
from sae_core.index_folder import Shard
from sae_core.loading import load_model
from sae_core.records import IndexRecords, SAEInfo
from sae_core.store_rows import tokens_fired_on
from tests.planted import random_sae, save_sae
from tests.sae_core.test_index import without_times
from tests.tiny import TEXTS

D_SAE, K, CONTEXT_SIZE = 40, 5, 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join(TEXTS) * 3, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def info(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> SAEInfo:
    model = load_model(str(tiny_llama))
    sae = random_sae(model.info.d_model, D_SAE, K, seed=5)
    folder = tmp_path_factory.mktemp("saes") / "mine"
    return save_sae(sae, folder, model, layer=1, hook="resid_post", context_size=CONTEXT_SIZE)


def config_of(corpus: Path, **changed: Any) -> IndexConfig:
    values = {"slug": "mine", "corpus": (str(corpus),), "tokens": None, "batch_contexts": 3, "checkpoint_seconds": 0.0}
    return IndexConfig(**(values | changed))


def content(records: IndexRecords | None) -> list[Any]:
    """Everything but times."""
    assert records is not None
    info = dataclasses.replace(records.info, seconds=0.0, created_at=None)  # type: ignore[arg-type]
    return [info, list(records.contexts), without_times(records.features), list(records.examples)]


@pytest.fixture(scope="module")
def whole(info: SAEInfo, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return content(build_index(info, config_of(corpus), home=tmp_path_factory.mktemp("home")))


def stopping_after(n: int, *, by: Callable[[], None]) -> Callable[..., Any]:
    """`CorpusPass.add` that calls `by` after the n-th batch."""
    add = evaluate.CorpusPass.add
    count = 0

    def counted(self: evaluate.CorpusPass, *arguments: Any, **named: Any) -> None:
        nonlocal count
        add(self, *arguments, **named)
        count += 1
        if count == n:
            by()

    return counted


@pytest.mark.parametrize("n", [1, 4])
def test_a_stopped_index_goes_on_and_ends_as_if_it_had_not_been(
    n: int, info: SAEInfo, corpus: Path, whole: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        stopping = stopping_after(n, by=lambda: os.kill(os.getpid(), signal.SIGINT))
        context.setattr(evaluate.CorpusPass, "add", stopping)
        assert build_index(info, config_of(corpus, checkpoint_seconds=60.0), home=tmp_path) is None
    seen: list[int] = []
    counted = evaluate.CorpusPass.add

    def watched(self: evaluate.CorpusPass, *arguments: Any, **named: Any) -> None:
        seen.append(named["first_context"])
        counted(self, *arguments, **named)

    monkeypatch.setattr(evaluate.CorpusPass, "add", watched)
    assert content(build_index(info, config_of(corpus), home=tmp_path)) == whole
    assert seen[0] == 3 * n


def test_a_killed_index_goes_on_from_its_checkpoint(
    info: SAEInfo, corpus: Path, whole: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed() -> None:
        monkeypatch.setattr(
            evaluate.CorpusPass, "add", stopping_after(5, by=lambda: os.kill(os.getpid(), signal.SIGKILL))
        )
        torch.set_num_threads(1)
        build_index(info, config_of(corpus), home=tmp_path)

    torch.set_num_threads(torch.get_num_threads())
    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (folder,) = (path for path in (tmp_path / "indexes" / "mine").iterdir() if path.is_dir())
    assert (folder / "state.pt").exists()
    assert content(build_index(info, config_of(corpus), home=tmp_path)) == whole


@pytest.mark.parametrize("damage", [b"", b"half", None], ids=["empty", "garbage", "cut"])
def test_a_damaged_checkpoint_is_left_behind(
    damage: bytes | None, info: SAEInfo, corpus: Path, whole: list[Any], tmp_path: Path
) -> None:
    build_index(info, config_of(corpus), home=tmp_path)
    (state,) = (tmp_path / "indexes").rglob("state.pt")
    state.write_bytes(state.read_bytes()[:5000] if damage is None else damage)
    assert content(build_index(info, config_of(corpus), home=tmp_path)) == whole


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_shards_merge_into_exactly_what_one_process_makes(
    count: int, info: SAEInfo, corpus: Path, whole: list[Any], tmp_path: Path
) -> None:
    for number in range(count, 0, -1):
        assert index_shard(info, config_of(corpus), Shard(number, count), home=tmp_path)
    assert content(merge_shards(info, config_of(corpus), home=tmp_path)) == whole
    assert not list(tmp_path.rglob("part-*"))
    # What was merged is a whole index's state: nothing is left to do for one that begins now.
    assert content(build_index(info, config_of(corpus), home=tmp_path)) == whole


def test_merging_says_what_is_missing(info: SAEInfo, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to merge for mine"):
        merge_shards(info, config_of(corpus), home=tmp_path)
    for number in (1, 3):
        index_shard(info, config_of(corpus), Shard(number, 4), home=tmp_path)
    with pytest.raises(ConfigError, match="--shard 2/4, 4/4"):
        merge_shards(info, config_of(corpus), home=tmp_path)


def test_shards_of_another_text_are_refused(info: SAEInfo, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / corpus.name
    other.write_text(corpus.read_text(encoding="utf-8"), encoding="utf-8")
    for number in (1, 2):
        index_shard(info, config_of(other), Shard(number, 2), home=tmp_path)
    other.write_text("Something else. " + corpus.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ConfigError, match="made from another text"):
        merge_shards(info, config_of(other), home=tmp_path)


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2"])
def test_a_shard_that_is_none_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match="write 1/4, 2/4, 3/4 and 4/4"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shards_are_whole_batches_that_cover_everything(count: int) -> None:
    ranges = [Shard(number, count).contexts(100, batch_contexts=8) for number in range(1, count + 1)]
    assert [place for first, last in ranges for place in range(first, last)] == list(range(100))
    assert all(first % 8 == 0 or first == last for first, last in ranges)


def test_more_text_extends_an_index(
    info: SAEInfo, corpus: Path, whole: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_contexts = whole[0].corpus.n_contexts
    some = config_of(corpus, tokens=400)
    first = build_index(info, some, home=tmp_path)
    assert first is not None and first.info.corpus.n_contexts < n_contexts
    seen: list[int] = []
    add = evaluate.CorpusPass.add

    def watched(self: evaluate.CorpusPass, *arguments: Any, **named: Any) -> None:
        seen.append(named["first_context"])
        add(self, *arguments, **named)

    monkeypatch.setattr(evaluate.CorpusPass, "add", watched)
    extended = build_index(info, config_of(corpus), home=tmp_path)
    assert extended is not None
    assert seen[0] == first.info.corpus.n_contexts
    assert extended.info.corpus == whole[0].corpus
    for mine, theirs in zip(extended.features, whole[2], strict=True):
        assert mine.n_active == theirs.n_active
        assert mine.mean_activation == pytest.approx(theirs.mean_activation, rel=1e-5)
        assert tokens_fired_on(mine.sampled_tokens) == tokens_fired_on(theirs.sampled_tokens)


def test_another_text_or_sae_starts_over(info: SAEInfo, corpus: Path, whole: list[Any], tmp_path: Path) -> None:
    other = tmp_path / corpus.name
    other.write_text("Something else. " + corpus.read_text(encoding="utf-8"), encoding="utf-8")
    build_index(info, config_of(other), home=tmp_path)
    assert content(build_index(info, config_of(corpus), home=tmp_path)) == whole
    assert content(build_index(info, config_of(corpus, seed=1), home=tmp_path))[3] != whole[3]


def test_the_second_of_two_indexers_is_told_who_is_at_work(info: SAEInfo, corpus: Path, tmp_path: Path) -> None:
    with held(tmp_path, slug="mine"):
        code = (
            "import sys, pickle; from pathlib import Path; from sae_core.index import build_index\n"
            "from sae_core.errors import BusyError\n"
            "info, config, home = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
            "try: build_index(info, config, home=home)\n"
            "except BusyError as error: print(error)\n"
        )
        import pickle

        given = pickle.dumps((info, config_of(corpus), tmp_path)).hex()
        shown = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True, check=True)
        assert f"The SAE mine is being indexed by process {os.getpid()} on " in shown.stdout
        with (
            pytest.raises(BusyError, match="wait until it is done, or stop it"),
            held(tmp_path, slug="mine"),
        ):
            pass
        assert index_shard(info, config_of(corpus), Shard(1, 2), home=tmp_path)  # shards work side by side
    started = time.monotonic()
    with held(tmp_path, slug="mine"):
        assert time.monotonic() - started < 1
