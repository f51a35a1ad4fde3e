"""dictionary_learning: its `TopKTrainer`, whose `update` is the whole body of its training loop.

`default` has the learning rate that it chooses itself. Tuned, it has the job's, and a dead window that opens within the
run. Both warm up over a tenth of the run and decay over its last fifth: its own warm-up of 1,000 steps is longer than
the run, which it refuses.
"""

from dictionary_learning.trainers.top_k import TopKTrainer
from torch import Tensor

from benchmarks.contestant import Job
from benchmarks.peers.child import Finished, batches, serve, version_of


class DictionaryLearning:
    def __init__(self, job: Job, rows: Tensor) -> None:
        is_tuned = job.variant != "default"
        self._trainer = TopKTrainer(
            steps=job.steps,
            activation_dim=rows.shape[1],
            dict_size=job.d_sae,
            k=job.k,
            layer=0,
            lm_name="synthetic",
            lr=float(job.variant) if is_tuned else None,
            warmup_steps=job.steps // 10,
            decay_start=job.steps * 4 // 5,
            seed=job.seed,
            device="cpu",
        )
        if is_tuned:
            self._trainer.dead_feature_threshold = job.dead_after_rows
        self._batches = batches(rows, job)
        self._step = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._trainer.update(self._step, next(self._batches))
            self._step += 1

    def finished(self) -> Finished:
        sae = self._trainer.ae

        def forward(rows: Tensor) -> tuple[Tensor, Tensor]:
            sae_out, feature_acts = sae(rows, output_features=True)
            return sae_out, feature_acts.nonzero()[:, 1]

        return Finished(forward, sae.decoder.weight.T)


if __name__ == "__main__":
    serve(DictionaryLearning, version=version_of("dictionary-learning"))
