"""Homes with runs in them, without training anything: what `run_log` and `run_folder` would have written."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from sae_core.config import IndexConfig, TrainConfig
from sae_core.run_log import CONFIG_FILE, METRICS_FILE, RunFiles, RunLog, recorded

TRAINING = TrainConfig(model="demo-lm", layer=3, corpus=("poems.txt",), d_sae=300, k=15, tokens=100_000)
INDEXING = IndexConfig(slug="demo", corpus=("poems.txt",), name="poems")


def training_files(home: Path, slug: str = "demo", *, config: TrainConfig = TRAINING) -> RunFiles:
    """The files of a training run whose folder has its configuration."""
    folder = home / "runs" / slug
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / CONFIG_FILE)
    return RunFiles(folder)


@contextmanager
def training(home: Path, *slugs: str, config: TrainConfig = TRAINING) -> Iterator[RunLog]:
    """A training job at work for as long as it is open; one that is not stopped leaves finished SAEs."""
    slugs = slugs or ("demo",)
    files = [training_files(home, slug, config=config) for slug in slugs]
    with recorded(files, kind="training", together=list(slugs), processes=1) as log:
        yield log
        for made in files if log.outcome == "finished" else ():
            (made.folder / "sae.json").write_text("{}")


@contextmanager
def indexing(home: Path, *, shard: tuple[int, int] | None = None) -> Iterator[RunLog]:
    """A job that indexes "demo" on "poems", at work for as long as it is open."""
    files = RunFiles.of_index(home, slug="demo", corpus="poems", shard=shard)
    files.folder.mkdir(parents=True, exist_ok=True)
    with recorded([files], kind="indexing", corpus="poems", config=asdict(INDEXING)) as log:
        yield log


def measure(home: Path, tokens: Sequence[int], *, slug: str = "demo", at: float | None = None) -> None:
    """Appends a point for each count of tokens: FVU and loss fall as 1 / tokens."""
    with (home / "runs" / slug / METRICS_FILE).open("a", encoding="utf-8") as file:
        for n in tokens:
            fvu = 1000 / (1000 + n)
            line = {"tokens": n, "fvu": fvu, "l0": 15.0, "dead_share": n / 1e6, "loss": 2 * fvu, "seconds": 2.0}
            file.write(json.dumps({**line, "at": time.time() if at is None else at}) + "\n")
