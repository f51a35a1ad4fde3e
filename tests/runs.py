"""Small training runs: a corpus on disk, a configuration of a few steps, and what a run leaves behind."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sae_core.config import TrainConfig
from tests.tiny import TEXTS


def write_corpus(folder: Path) -> Path:
    """`TEXTS`, one file each."""
    for number, text in enumerate(TEXTS):
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return folder


def small_config(model: Path, corpus: Path, **changes: Any) -> TrainConfig:
    """16 steps over 4 buffers of 4 batches each."""
    config = TrainConfig(
        model=str(model),
        layer=1,
        corpus=(str(corpus),),
        d_sae=64,
        k=4,
        tokens=2048,
        context_size=32,
        batch_tokens=128,
        buffer_tokens=512,
        device="cpu",
    )
    return dataclasses.replace(config, **changes)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same numbers, bit for bit."""
    ours, theirs = weights_of(one), weights_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
