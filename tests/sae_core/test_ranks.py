"""Training with two processes: the losses and weights of one; a process that is lost; what is refused.

Processes take seconds to start, so one start trains all of `JOBS` and makes all selections (`drive`, at the end), and
the tests compare what it left with what a single process makes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_core import run_folder
from sae_core import train as training
from sae_core.config import TrainConfig
from sae_core.errors import ConfigError, SaescopeError
from sae_core.fit import Trainee
from sae_core.ranks import Ranks, joined_ranks, spoken_by_first
from sae_core.run_folder import RunFolder
from sae_core.sae import load_sae
from sae_core.shards import largest_of_batch, largest_of_rows
from sae_core.sparse import SparseCode
from sae_core.train import train, train_together
from tests.tiny import TEXTS, save_tiny_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SIZE = 2
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(SIZE))

# What is trained by one process and by two: (how it is shared, settings that differ from `config_in`).
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk-data": ("data", {}),
    "topk-features": ("features", {}),
    "topk-features-lifted": ("features", {"aux_coefficient": 0.0}),
    "topk-features-wide": ("features", {"k": 140}),  # more than one rank's features
    "multi-topk-data": ("data", {"multi_topk": True}),
    "batchtopk-data": ("data", {"architecture": "batchtopk"}),
    "batchtopk-features": ("features", {"architecture": "batchtopk"}),
    "matryoshka-data": ("data", {"architecture": "matryoshka"}),
    "relu-data": ("data", {"architecture": "relu"}),
    "gated-data": ("data", {"architecture": "gated"}),
    "jumprelu-data": ("data", {"architecture": "jumprelu"}),
    "transcoder-features": ("features", {"hook": "mlp_in", "target_hook": "mlp_out"}),
    "cached-features": ("features", {"cache_activations": True, "dtype": "bfloat16"}),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "uneven-slices": ("features", {"d_sae": 255}, "d_sae (255) must be a multiple of the number of processes (2)"),
    "gated-slices": ("features", {"architecture": "gated"}, "gated cannot be sharded; use --shard data"),
    "matryoshka-slices": ("features", {"architecture": "matryoshka"}, "matryoshka cannot be sharded"),
    "multi-topk-slices": ("features", {"multi_topk": True}, "cannot be sharded with --multi-topk"),
    "uneven-rows": ("data", {"batch_tokens": 127}, "batch_tokens (127) must be a multiple of the number of processes"),
}
# Steps long enough that signals hit them.
LONG = {
    "d_sae": 1024, "k": 4, "tokens": 100 * 1024, "batch_tokens": 1024, "buffer_tokens": 4096, "context_size": 32,
    "dead_after_tokens": 2048, "aux_coefficient": 0.03125, "device": "cpu", "checkpoint_seconds": 0.2,
}  # fmt: skip
# Entries a row on each rank, and how many to keep.
ROWS = (((3, 5), 4), ((0, 5), 3), ((5, 0), 3), ((2, 3), 9), ((4, 4), 1), ((0, 0), 2))
BATCHES = (((30, 50), 20), ((0, 50), 20), ((30, 50), 100), ((0, 0), 20))


def config_in(folder: Path, **differing: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "model": str(folder / "model"),
        "layer": 1,
        "corpus": (str(folder / "corpus"),),
        "d_sae": 256,
        "k": 4,
        "tokens": 24 * 128,
        "context_size": 32,
        "batch_tokens": 128,
        "buffer_tokens": 1024,
        "dead_after_tokens": 256,
        "aux_coefficient": 1 / 32,
        "device": "cpu",
    }
    return TrainConfig(**{**settings, **differing})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a corpus, and what two processes made of them."""
    folder = tmp_path_factory.mktemp("ranks")
    save_tiny_model(folder / "model")
    (folder / "corpus").mkdir()
    for number, text in enumerate(TEXTS):
        (folder / "corpus" / f"{number}.txt").write_text(text, encoding="utf-8")
    process = started("-m", "tests.sae_core.test_ranks", str(folder))
    said = ended(process, seconds=900)[1]
    assert process.returncode == 0, said[-5000:]
    (folder / "said.txt").write_text(said)
    return folder


def started(*arguments: str) -> subprocess.Popen[str]:
    """torchrun of two processes, each with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([*TORCHRUN, *arguments], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str], *, seconds: float) -> tuple[str, str]:
    """What it printed and said by its end; if that does not come, torchrun is asked to end its processes."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_sae(run).state_dict()


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_train_what_one_does(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_METRICS_SECONDS", -1.0)  # a line for every step
    train(config_in(folder, **JOBS[name][1]), runs=folder / "one" / "runs", slug=name)
    one, two = (folder / way / "runs" / name for way in ("one", "two"))
    steps = [metrics_of(run) for run in (one, two)]
    assert len(steps[0]) == len(steps[1]) == 24
    for single, shared in zip(*steps, strict=True):
        for measure in ("tokens", "fvu", "loss", "l0", "dead_share"):
            assert shared[measure] == pytest.approx(single[measure], rel=2e-4, abs=1e-6), (measure, single["tokens"])
    torch.testing.assert_close(weights_of(two), weights_of(one), rtol=1e-3, atol=1e-4)
    assert not list(two.glob("*.pt")) + list(two.glob("*.new"))


def test_the_auxiliary_loss_was_active_in_what_was_compared(folder: Path) -> None:
    for name in ("topk-features", "batchtopk-features", "matryoshka-data", "transcoder-features"):
        assert max(line["dead_share"] for line in metrics_of(folder / "two" / "runs" / name)) > 0, name


def test_several_saes_train_together_on_several_processes(folder: Path) -> None:
    for slug, alone in (("together-topk", "topk-features"), ("together-batchtopk", "batchtopk-features")):
        torch.testing.assert_close(
            weights_of(folder / "two" / "runs" / slug), weights_of(folder / "two" / "runs" / alone), rtol=0, atol=0
        )


def test_dead_features_of_one_process_only_take_the_same_step(folder: Path) -> None:
    expected = step_with_dead_features(Ranks("features")).state_dict()
    torch.testing.assert_close(weights_of(folder / "two" / "dead"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_refused_by_every_process_in_one_sentence(folder: Path, name: str) -> None:
    answers = [json.loads((folder / f"answers-{rank}.json").read_text())[name] for rank in range(SIZE)]
    assert answers[0] == answers[1]
    kind, sentence, exit_code = answers[0]
    assert (kind, exit_code) == ("ConfigError", 2)
    assert REFUSED[name][2] in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_the_largest_of_rows_are_found_over_all_processes(folder: Path, number: int) -> None:
    widths, k = ROWS[number]
    kept = [torch.load(folder / f"selected-{rank}.pt")["rows"][number] for rank in range(SIZE)]
    held = [row_code(width, rank) for rank, width in enumerate(widths)]
    for row in range(7):
        everything = torch.cat([code.values.view(7, -1)[row] for code in held])
        mine = [entries_of(code, row) for code in kept]
        for rank, entries in enumerate(mine):
            assert entries.items() <= entries_of(held[rank], row).items()
        values = torch.tensor([value for entries in mine for value in entries.values()])
        expected = everything.topk(min(k, len(everything))).values
        assert torch.equal(values.sort(descending=True).values, expected), row


@pytest.mark.parametrize("number", range(len(BATCHES)))
@pytest.mark.parametrize("mode", ["features", "data"])
def test_the_largest_of_a_batch_are_found_over_all_processes(folder: Path, number: int, mode: str) -> None:
    counts, n = BATCHES[number]
    kept = [torch.load(folder / f"selected-{rank}.pt")[mode][number] for rank in range(SIZE)]
    held = [batch_code(count, rank) for rank, count in enumerate(counts)]
    for rank, code in enumerate(kept):
        for row in range(7):
            assert entries_of(code, row).items() <= entries_of(held[rank], row).items()
    expected = torch.cat([code.values for code in held]).topk(min(n, sum(counts))).values
    assert torch.equal(torch.cat([code["values"] for code in kept]).sort(descending=True).values, expected)


# -- A job that is stopped, one that loses a process, and the same command again ------------------------------------


@pytest.fixture
def start_job(folder: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts `torchrun … -m sae_core.train` on the run `long`, of which `drive` made an uninterrupted twin."""
    options = [part for name, value in LONG.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    places = ["--home", str(tmp_path), "--model", str(folder / "model"), "--corpus", str(folder / "corpus")]
    jobs: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        what = ("-m", "sae_core.train", "--shard", "features", "--slug", "long", "--layer", "1")
        jobs.append(started(*what, *places, *options))
        return jobs[-1]

    yield start
    for process in jobs:
        if process.poll() is None:
            process.terminate()
            process.communicate()


def test_stopped_then_robbed_of_a_process_a_job_ends_with_the_same_weights(
    folder: Path, tmp_path: Path, start_job: Callable[[], subprocess.Popen[str]]
) -> None:
    run = tmp_path / "runs" / "long"

    process = start_job()
    wait_for(lambda: bool(checkpoints_of(run)), process)
    process.send_signal(signal.SIGTERM)
    said = ended(process, seconds=600)[1]
    assert process.returncode != 0
    assert ours(said) == []
    assert "saescope:" not in said  # it was asked to stop: nothing to explain
    stopped_at = max(checkpoints_of(run))

    process = start_job()
    wait_for(lambda: max(checkpoints_of(run)) > stopped_at, process)
    os.kill(process_of_rank(process.pid, 1), signal.SIGKILL)
    killed_at = time.monotonic()
    said = ended(process, seconds=600)[1]
    assert time.monotonic() - killed_at < 25  # torchrun would kill the other after 30
    assert process.returncode != 0
    assert ours(said) == []
    sentences = [line for line in said.splitlines() if "saescope:" in line]
    assert len(sentences) == 1, said
    assert sentences[0].endswith(
        "saescope: Another process of this job ended or cannot be reached, so this one stops too; start the same "
        "command again, it goes on from the last checkpoint."
    )
    assert len(checkpoints_of(run)) <= 3
    assert not (run / "sae.safetensors").exists()
    config = TrainConfig.load(run / "config.json")
    for shard in (None, (0, 3)):
        with pytest.raises(ConfigError, match=r"begun with --shard features and 2 processes; go on with that, or"):
            RunFolder(run, config, shard=shard)
    with pytest.raises(ConfigError, match=r"begun with --shard features and 2 processes"):
        train(config, runs=run.parent, slug="long")

    process = start_job()
    printed, said = ended(process, seconds=600)
    assert process.returncode == 0, said[-5000:]
    assert printed.count("The SAE is in") == 1
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "progress.json",
        "run.jsonl",
        "sae.json",
        "sae.safetensors",
    ]
    torch.testing.assert_close(weights_of(run), weights_of(folder / "two" / "runs" / "long"), rtol=0, atol=0)
    tokens = [line["tokens"] for line in metrics_of(run)]
    assert tokens == sorted(set(tokens))


def test_a_refusal_is_shown_once(folder: Path) -> None:
    said = (folder / "said.txt").read_text()
    assert said.count("saescope: d_sae (255) must be a multiple of the number of processes (2).\n") == 1
    assert said.count("d_sae (255)") == 1
    assert [json.loads((folder / f"answers-{rank}.json").read_text())["main"] for rank in range(SIZE)] == [2, 2]


@pytest.mark.parametrize(("rank", "is_heard"), [("0", True), ("1", False)])
def test_only_the_first_process_explains_options(
    rank: str, is_heard: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    with spoken_by_first():
        sys.stderr.write("usage")
    assert bool(capsys.readouterr().err) == is_heard


def wait_for(is_true: Callable[[], bool], process: subprocess.Popen[str], *, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert process.poll() is None, process.communicate()[1][-5000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def checkpoints_of(run: Path) -> set[int]:
    """Tokens of those that both ranks have written."""
    found = [{int(path.name.split("-")[1]) for path in run.glob(f"*-rank{rank}of{SIZE}.pt")} for rank in range(SIZE)]
    return found[0] & found[1]


def process_of_rank(torchrun: int, rank: int) -> int:
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    return next(
        int(child)
        for child in children
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    )


def ours(said: str) -> list[str]:
    """Lines of tracebacks that name our files."""
    return [line for line in said.splitlines() if "File" in line and ("sae_core" in line or "tests" in line)]


# -- What both processes do ---------------------------------------------------------------------------------------


def row_code(width: int, rank: int) -> SparseCode:
    """7 rows of `width` entries with many equal values, some negative."""
    generator = torch.Generator().manual_seed(10 * width + rank)
    values = torch.randint(-3, 4, (7, width), generator=generator).float()
    indices = torch.stack([torch.randperm(9, generator=generator)[:width] for _ in range(7)])
    return SparseCode.of_rows(indices, values, d_sae=9)


def batch_code(n: int, rank: int) -> SparseCode:
    """n entries in 7 rows, with many equal values."""
    generator = torch.Generator().manual_seed(10 * n + rank)
    row_of, features = torch.randperm(7 * 9, generator=generator)[:n].sort().values.div(9).floor().long(), None
    offsets = torch.searchsorted(row_of, torch.arange(8))
    features = torch.cat([torch.randperm(9, generator=generator)[: int(m)] for m in offsets.diff()])
    return SparseCode(offsets, features, torch.randint(1, 5, (n,), generator=generator).float(), d_sae=9)


def entries_of(code: SparseCode | dict[str, torch.Tensor], row: int) -> dict[int, float]:
    if isinstance(code, SparseCode):
        code = saved(code)
    part = slice(int(code["offsets"][row]), int(code["offsets"][row + 1]))
    return dict(zip(code["indices"][part].tolist(), code["values"][part].tolist(), strict=True))


def saved(code: SparseCode) -> dict[str, torch.Tensor]:
    return {"offsets": code.offsets, "indices": code.indices, "values": code.values}


def step_with_dead_features(ranks: Ranks) -> Any:
    """The SAE after two steps in which the first features, all on one rank, count as dead."""
    config = TrainConfig(
        model="none", layer=0, corpus=("none",), d_sae=32, k=4, tokens=1 << 20, batch_tokens=64, dead_after_tokens=64,
        buffer_tokens=128, aux_coefficient=1 / 32,
    )  # fmt: skip
    trainee = Trainee(config, d_in=8, ranks=ranks)
    first = trainee._features.start
    with torch.no_grad():
        trainee.sae.b_enc[: max(0, 5 - first)] = -100
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        trainee.step(torch.randn(64, 8, generator=generator))
        trainee.tokens_since_fired[max(0, 5 - first) :] = 0
    return trainee.finished()


def drive(folder: Path) -> None:
    """What each of two processes does for the tests above."""
    run_folder._METRICS_SECONDS = -1.0
    runs = folder / "two" / "runs"
    answers: dict[str, Any] = {}
    with joined_ranks() as job:
        for name, (shard, differing) in JOBS.items():
            train(config_in(folder, **differing), runs=runs, slug=name, shard=shard)
        pair = {f"together-{kind}": config_in(folder, architecture=kind) for kind in ("topk", "batchtopk")}
        train_together(pair, runs=runs, shard="features")
        train(config_in(folder, **LONG), runs=runs, slug="long", shard="features")
        for name, (shard, differing, _) in REFUSED.items():
            try:
                train(config_in(folder, **differing), runs=runs, slug=name, shard=shard)
            except SaescopeError as error:
                answers[name] = (type(error).__name__, str(error), error.exit_code)
        ranks = Ranks("features")
        dead = step_with_dead_features(ranks)
        if ranks.is_first:
            dead.save(folder / "two" / "dead")
        selected: dict[str, Any] = {
            "rows": [saved(largest_of_rows(row_code(widths[ranks.rank], ranks.rank), k, ranks)) for widths, k in ROWS]
        }
        for mode in ("features", "data"):
            selected[mode] = [
                saved(largest_of_batch(batch_code(counts[ranks.rank], ranks.rank), n, Ranks(mode)))
                for counts, n in BATCHES
            ]
        torch.save(selected, folder / f"selected-{ranks.rank}.pt")
        setattr(training, "joined_ranks", lambda: nullcontext(job))  # noqa: B010
        uneven = ["--d-sae", "255", "--shard", "features", "--slug", "shown", "--home", str(folder / "two")]
        sys.argv = ["train", *uneven, "--model", str(folder / "model"), "--layer", "1", "--corpus", str(folder)]
        answers["main"] = training.main()
        (folder / f"answers-{ranks.rank}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
