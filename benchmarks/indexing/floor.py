"""What no index can do without: the model to the hook and the encoder's product, on the same tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.indexing.job import Clock, Job, answer
from sae_core.loading import load_model
from sae_core.sae import load_sae

BATCH_CONTEXTS = 32


@torch.inference_mode()
def work(job: Job) -> dict[str, Any]:
    tokens = torch.from_numpy(np.load(job.tokens).astype(np.int64))
    model, sae = load_model(job.folder), load_sae(Path(job.sae))
    hook = f"blocks.{job.layer}.hook_resid_post"
    products = torch.empty(BATCH_CONTEXTS * tokens.shape[1], job.d_sae)  # memory that is used again

    def passed(batches: tuple[torch.Tensor, ...], forward: Clock, encode: Clock) -> None:
        for batch in batches:
            with forward, model.reading((hook,)) as read:
                (acts,) = read(batch, torch.ones_like(batch, dtype=torch.bool))
            rows = acts.reshape(-1, acts.shape[2])
            with encode:
                torch.mm(rows, sae.W_enc, out=products[: len(rows)])

    passed(tokens[: 2 * BATCH_CONTEXTS].split(BATCH_CONTEXTS), Clock(), Clock())  # warms up
    forward, encode = Clock(), Clock()
    passed(tokens.split(BATCH_CONTEXTS), forward, encode)
    return {"cpu_s": forward.cpu_s + encode.cpu_s, "forward_s": forward.cpu_s, "encode_s": encode.cpu_s}


if __name__ == "__main__":
    answer(work)
