"""The floor: what no TopK trainer can do without, the encoder's matrix product, into memory that was used before.

Variants `float32` and `bfloat16`. A trainer may select features in either; which one is faster depends on the machine.
"""

import torch
from torch import Tensor

from benchmarks.contestant import Job
from benchmarks.peers.child import Finished, serve, version_of


class Floor:
    """(batch_rows, d_in) @ (d_in, d_sae) a step."""

    def __init__(self, job: Job, rows: Tensor) -> None:
        dtype = getattr(torch, job.variant)
        self._x = rows[: job.batch_rows].to(dtype)
        self._W_enc = torch.randn(job.d_sae, rows.shape[1]).to(dtype).T
        self._pre_acts = torch.empty(len(self._x), job.d_sae, dtype=dtype)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            torch.mm(self._x, self._W_enc, out=self._pre_acts)

    def finished(self) -> Finished:
        raise NotImplementedError("the floor trains nothing")


if __name__ == "__main__":
    serve(Floor, version=version_of("torch"))
