"""The contestant's side of the pipe that `benchmarks/contestant.py` describes; needs torch, NumPy and the peer alone.

`serve(entrant)` answers requests until stdin closes. An entrant is a class: made for a job, it has a fresh SAE and its
trainer; `run` takes so many optimiser steps, each on the next batch; `finished` gives the SAE that a user would get.

`finish` leaves three arrays in its folder: `sae_out.npy`, the reconstructions of the held-out rows; `fired.npy`, how
often each feature fired on the first training rows; `W_dec.npy`, (d_sae, d_in). All metrics are made from them by the
parent, so that no contestant brings its own definitions.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.contestant import Job


class Finished(NamedTuple):
    """A trained SAE."""

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]  # rows (N, d_in) → sae_out (N, d_in), indexes of active features
    W_dec: Tensor  # (d_sae, d_in)


class Entrant(Protocol):
    """One peer's trainer."""

    def __init__(self, job: Job, rows: Tensor) -> None: ...

    def run(self, steps: int) -> None: ...

    def finished(self) -> Finished: ...


def batch_indices(n_rows: int, job: Job) -> Iterator[Tensor]:
    """Endless row numbers, (batch_rows,) at a time: a new order every epoch, the same for every contestant."""
    generator = torch.Generator().manual_seed(job.order_seed)
    while True:
        order = torch.randperm(n_rows, generator=generator)
        yield from order[: n_rows - n_rows % job.batch_rows].split(job.batch_rows)


def batches(rows: Tensor, job: Job) -> Iterator[Tensor]:
    """Endless batches (batch_rows, d_in) of the rows."""
    for indices in batch_indices(len(rows), job):
        yield rows[indices]


def loaded(path: str) -> Tensor:
    """The rows of a .npy file, in memory that all contestants share."""
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def version_of(package: str) -> str:
    """Name and version of an installed package."""
    return f"{package} {importlib.metadata.version(package)}"


def serve(entrant: type[Entrant], *, version: str) -> None:
    """Answers the parent's requests, into the pipe whose number is the last argument, until stdin closes."""
    answers = os.fdopen(int(sys.argv[-1]), "w")
    trainee: Entrant | None = None
    job: Job | None = None
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        match request.pop("do"):
            case "start":
                job = Job(**request)
                torch.set_num_threads(job.threads)
                torch.manual_seed(job.seed)
                trainee = entrant(job, loaded(job.train))
                answer: dict[str, Any] = {"version": version, "torch": torch.__version__}
            case "run" if trainee is not None:
                before = time.process_time()
                trainee.run(request["steps"])
                answer = {"cpu_s": time.process_time() - before}
            case "finish" if trainee is not None and job is not None:
                answer = {"l0": _write(trainee.finished(), job, Path(request["folder"]))}
            case do:
                answer = {"error": f"{do!r} cannot be asked now"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


@torch.no_grad()
def _write(finished: Finished, job: Job, folder: Path) -> float:
    """Writes what the metrics are made from; mean number of active features on a held-out row."""
    sae_out, n_active, n_rows = [], 0, 0
    for rows in loaded(job.held_out).split(job.batch_rows):
        out, active = finished.forward(rows)
        sae_out.append(out)
        n_active += len(active)
        n_rows += len(rows)
    fired = torch.zeros(job.d_sae, dtype=torch.int64)
    for rows in loaded(job.train)[: job.firing_rows].split(job.batch_rows):
        fired += torch.bincount(finished.forward(rows)[1], minlength=job.d_sae)
    np.save(folder / "sae_out.npy", torch.cat(sae_out).float().numpy())
    np.save(folder / "fired.npy", fired.numpy())
    np.save(folder / "W_dec.npy", finished.W_dec.detach().float().numpy())
    return n_active / n_rows
