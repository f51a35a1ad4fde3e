"""Contexts spread over a corpus with the activations of all features on them: where it is known what does not fire.

The examples of a feature say where it fires. A text without an example may still hold a firing that was not kept, so
that texts on which a label must say no are taken from here (`material`). One more pass of the model over 8,192 tokens.
"""

import numpy as np
import torch

from sae_core.context_file import ContextFile
from sae_core.evaluate import BatchCode, CorpusPass, Subject
from sae_core.explain.records import PackedSample

MOST_TOKENS = 8192
MOST_ENTRIES = 500_000  # active features on them, all together: 3 MB
PLACE_BITS = 16


def sampled_contexts(contexts: ContextFile, *, l0: float) -> list[int]:
    """Their numbers, evenly over the corpus. `l0`: active features a token."""
    longest = max(int(contexts.lengths.max()), 1)
    n = int(min(MOST_TOKENS, MOST_ENTRIES / max(l0, 1)) // longest)
    n = min(max(n, 1), len(contexts))
    return [i * len(contexts) // n for i in range(n)]


def context_sample(subject: Subject, contexts: ContextFile, numbers: list[int], *, batch_contexts: int) -> PackedSample:
    """The sparse code of these contexts, by feature and then by place."""
    features, places, values = [], [], []

    def take(batch: BatchCode) -> None:
        rows = batch.rows.numpy()
        number = batch.row_contexts.numpy()[rows] + batch.first_context
        places.append(number << PLACE_BITS | batch.row_positions.numpy()[rows])
        features.append(batch.features.numpy())
        values.append(batch.values.numpy())

    with torch.inference_mode():
        corpus_pass = CorpusPass(subject, batch_contexts=batch_contexts, take=take)
        for start in range(0, len(numbers), batch_contexts):
            some = [contexts[number] for number in numbers[start : start + batch_contexts]]
            corpus_pass.add(some, first_context=start)
    feature, place, value = (np.concatenate(column) for column in (features, places, values))
    order = np.lexsort((place, feature))
    return PackedSample(
        context_ids=np.array(numbers, "<u4").tobytes(),
        starts=np.searchsorted(feature[order], np.arange(subject.sae.d_sae + 1)).astype("<u4").tobytes(),
        places=place[order].astype("<u4").tobytes(),
        activations=value[order].astype("<f2").tobytes(),
    )
