"""What every contestant of `benchmarks/index.py` is given, and how it answers; needs NumPy and torch alone."""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One SAE on one text."""

    folder: str  # of the model, with its tokenizer
    sae: str  # folder of the SAE's weights
    tokens: str  # .npy of contexts (N, context size), each with BOS first
    architecture: str  # relu or topk
    layer: int
    d_sae: int
    k: int
    n_features: int  # that the contestant makes data for: the first so many
    database: str = ""  # ours: where the index goes

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def answer(work: Callable[[Job], dict[str, Any]]) -> None:
    """Reads the job that the last argument names, works, and prints what came out as the last line of stdout."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = work(Job(**json.loads(Path(sys.argv[-1]).read_text())))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 1024  # KiB on Linux
    print(json.dumps(found | {"peak_gib": round(peak, 3)}))


class Clock:
    """CPU and wall seconds of the blocks that are timed."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    def __enter__(self) -> "Clock":
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s += time.process_time() - self._cpu
        self.wall_s += time.perf_counter() - self._wall
