"""A million features: the collectors fed with made-up codes, and all of their records made, in bounded memory.

Every token has `K` features active, drawn so that each feature fires about `TOKENS · K / d_sae` times.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.indexing.job import Job, answer
from sae_core import evidence
from sae_core.context_file import ContextFile, text_keys
from sae_core.firings import Firings
from sae_core.tokens import TokenContext

CONTEXT_SIZE, K, BATCH_CONTEXTS = 128, 64, 256


def work(job: Job) -> dict[str, Any]:
    n_contexts = job.n_features  # here: how many contexts are read
    rng = np.random.default_rng(0)
    contexts = [
        TokenContext(rng.integers(1, 6000, CONTEXT_SIZE).astype(np.int64), f"document {i // 20}")
        for i in range(n_contexts)
    ]
    started = time.process_time()
    firings = Firings(job.d_sae, n_top=20, per_band=5, n_random=10, seed=0)
    n_rows = BATCH_CONTEXTS * CONTEXT_SIZE
    rows = torch.arange(n_rows).repeat_interleave(K)
    generator = torch.Generator().manual_seed(0)
    making = 0.0
    for first in range(0, n_contexts, BATCH_CONTEXTS):
        made = time.process_time()
        batch = contexts[first : first + BATCH_CONTEXTS]
        # One feature from each of K equal ranges, so that none stands twice on a token.
        width = job.d_sae // K
        features = torch.randint(width, (n_rows, K), generator=generator) + torch.arange(K) * width
        values = torch.empty(n_rows, K).exponential_(generator=generator) + 0.01
        making += time.process_time() - made
        firings.add(
            rows,
            features.flatten(),
            values.flatten(),
            contexts=np.repeat(np.arange(first, first + BATCH_CONTEXTS), CONTEXT_SIZE),
            positions=np.tile(np.arange(CONTEXT_SIZE), BATCH_CONTEXTS),
            texts=text_keys(batch),
        )
    collected = time.process_time() - started - making
    on_disk = ContextFile(contexts, folder=Path(job.folder))
    started = time.process_time()
    n_examples = sum(len(packed.bands) for packed in evidence.example_records(firings, on_disk))
    return {
        "d_sae": job.d_sae,
        "entries": int(firings.n.sum()),
        "collected_s": collected,
        "examples": n_examples,
        "examples_s": time.process_time() - started,
    }


if __name__ == "__main__":
    answer(work)
