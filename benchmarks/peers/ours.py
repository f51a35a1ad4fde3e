"""saescope: `sae_core.fit.Trainee` as it comes, with nothing set for this data; or tuned to a low FVU."""

from torch import Tensor

from benchmarks.contestant import Job
from benchmarks.peers.child import Finished, batches, serve, version_of
from sae_core.config import TrainConfig
from sae_core.fit import Trainee

# More of the noise is fitted by features that are to spare, fewer true directions are found (docs/training.md).
LOW_FVU = {"learning_rate": 3e-3, "beta2": 0.9, "bias_lift": 50.0, "decay_share": 0.45}


class Ours:
    def __init__(self, job: Job, rows: Tensor) -> None:
        config = TrainConfig(
            model="synthetic",
            layer=0,
            corpus=("synthetic",),
            d_sae=job.d_sae,
            k=job.k,
            tokens=job.steps * job.batch_rows,
            batch_tokens=job.batch_rows,
            seed=job.seed,
            **({} if job.variant == "default" else LOW_FVU),
        )
        self._trainee = Trainee(config, d_in=rows.shape[1], device="cpu")
        self._batches = batches(rows, job)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._trainee.step(next(self._batches))

    def finished(self) -> Finished:
        sae = self._trainee.finished()

        def forward(rows: Tensor) -> tuple[Tensor, Tensor]:
            code = sae.encode(rows)
            return sae.decode(code), code.active()[1]

        return Finished(forward, sae.W_dec)


if __name__ == "__main__":
    serve(Ours, version=version_of("saescope"))
