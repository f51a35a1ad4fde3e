"""SAELens: a TopK SAE under `SAETrainer.fit`, which is called for a few steps at a time.

`default` leaves everything as it comes: Adam at 3e-4, constant, features dead after 1,000 steps without firing.
Tuned, it has the job's learning rate and a dead window that opens within the run.
"""

from typing import Any

from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from torch import Tensor

from benchmarks.contestant import Job
from benchmarks.peers.child import Finished, batches, serve, version_of


def tuned(job: Job) -> dict[str, Any]:
    return {"lr": float(job.variant), "dead_feature_window": job.dead_after_rows // job.batch_rows}


class SAELens:
    def __init__(self, job: Job, rows: Tensor) -> None:
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=rows.shape[1], d_sae=job.d_sae, k=job.k, device="cpu"))
        config = SAETrainerConfig(
            total_training_samples=job.steps * job.batch_rows,
            train_batch_size_samples=job.batch_rows,
            lr_end=3e-5,  # of falling schedules alone, but asked for
            device="cpu",
            logger=LoggingConfig(log_to_wandb=False),
            **({} if job.variant == "default" else tuned(job)),
        )
        self._trainer = SAETrainer(cfg=config, sae=sae, data_provider=batches(rows, job))

    def run(self, steps: int) -> None:
        trainer = self._trainer
        trainer.cfg.total_training_samples = trainer.n_training_samples + steps * trainer.cfg.train_batch_size_samples
        trainer.fit()

    def finished(self) -> Finished:
        sae = self._trainer.sae.eval()

        def forward(rows: Tensor) -> tuple[Tensor, Tensor]:
            feature_acts = sae.encode(rows)  # (N, d_sae), dense
            return sae.decode(feature_acts), feature_acts.nonzero()[:, 1]

        return Finished(forward, sae.W_dec)


if __name__ == "__main__":
    serve(SAELens, version=version_of("sae-lens"))
