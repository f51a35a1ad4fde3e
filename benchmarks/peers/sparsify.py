"""sparsify (EleutherAI): its own `Trainer.fit`, which is called for a few steps at a time.

That trainer reads activations from a language model's module. Here the model is a table of the training rows, the
tokens are row numbers, and the module's output is the rows themselves: the copies and masks that the trainer makes on
the way are part of what it costs.

`default` leaves everything as it comes: SignSGD, schedule-free, no auxiliary loss. Tuned, it has its Adam at the job's
learning rate, a warm-up over a tenth of the run, and the auxiliary loss with a dead window that opens within the run.
"""

from typing import Any

import torch
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn

from benchmarks.contestant import Job
from benchmarks.peers.child import Finished, batch_indices, serve, version_of

ROWS_A_SEQUENCE = 128


class RowModel(nn.Module):
    """Stands in for a language model: its one module's output for a token is the row of that number."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Embedding.from_pretrained(rows)
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    @property
    def base_model(self) -> nn.Module:
        return self

    @property
    def device(self) -> torch.device:
        return self.rows.weight.device

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.rows(input_ids)


class RowNumbers:
    """Stands in for a data set: sequences of row numbers, as many as the trainer shall see in its next `fit`."""

    def __init__(self, n_rows: int, job: Job) -> None:
        self._batches = batch_indices(n_rows, job)
        self.sequences: Tensor = torch.empty(job.steps * job.batch_rows // ROWS_A_SEQUENCE, 0)

    def prepare(self, steps: int) -> None:
        numbers = torch.cat([next(self._batches) for _ in range(steps)])
        self.sequences = numbers.view(-1, ROWS_A_SEQUENCE)

    def select(self, _: range) -> "RowNumbers":
        return self  # what is left after the steps already taken: always just what was prepared

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.sequences[index]}


class UnsavedTrainer(Trainer):
    """`fit` saves at its end; a run in many parts would pay for that many times."""

    def save(self) -> None:
        pass


def tuned(job: Job) -> dict[str, Any]:
    return {
        "optimizer": "adam",
        "lr": float(job.variant),
        "lr_warmup_steps": job.steps // 10,
        "auxk_alpha": 1 / 32,
        "dead_feature_threshold": job.dead_after_rows,
    }


class Sparsify:
    def __init__(self, job: Job, rows: Tensor) -> None:
        config = TrainConfig(
            SparseCoderConfig(num_latents=job.d_sae, k=job.k),
            batch_size=job.batch_rows // ROWS_A_SEQUENCE,
            hookpoints=["rows"],
            init_seeds=[job.seed],
            log_to_wandb=False,
            **({} if job.variant == "default" else tuned(job)),
        )
        self._row_numbers = RowNumbers(len(rows), job)
        self._trainer = UnsavedTrainer(config, self._row_numbers, RowModel(rows))

    def run(self, steps: int) -> None:
        self._row_numbers.prepare(steps)
        self._trainer.fit()

    def finished(self) -> Finished:
        for optimizer in self._trainer.optimizers:
            if hasattr(optimizer, "eval"):
                optimizer.eval()  # schedule-free: the averaged weights, which are also what it saves
        (sae,) = self._trainer.saes.values()

        def forward(rows: Tensor) -> tuple[Tensor, Tensor]:
            code = sae.encode(rows)
            return sae.decode(code.top_acts, code.top_indices), code.top_indices[code.top_acts > 0]

        return Finished(forward, sae.W_dec)


if __name__ == "__main__":
    serve(Sparsify, version=version_of("eai-sparsify"))
