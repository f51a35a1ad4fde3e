"""saescope: the whole index, from tokens to a database that pages are served from; then a check by brute force.

Left out of the time: loading the model, and cutting text into tokens, which no contestant does.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.indexing.job import Clock, Job, answer
from sae_core import index
from sae_core.config import IndexConfig, TrainConfig
from sae_core.context_file import ContextFile, text_keys
from sae_core.loading import load_model
from sae_core.model import LanguageModel
from sae_core.records import SAEInfo
from sae_core.sae import load_sae
from sae_core.store import Store
from sae_core.tokens import TokenContext, vocabulary

CHECKED_FEATURES = 64
SLUG = "bench"


def work(job: Job) -> dict[str, Any]:
    tokens = np.load(job.tokens)
    contexts = [TokenContext(row.astype(np.int64), "tokens") for row in tokens]
    model = load_model(job.folder)
    info = sae_info(job, model)
    home = Path(job.database).parent
    index.read_contexts = lambda *_, **__: ContextFile(contexts, folder=home)  # type: ignore[assignment]
    store = Store.open(f"sqlite:///{job.database}")
    store.add_sae(info, vocabulary(model.tokenizer))
    config = IndexConfig(slug=SLUG, corpus=("tokens",), tokens=None, context_size=tokens.shape[1])
    warm_up(info, config, contexts, home)
    whole, writing = Clock(), Clock()
    with whole:
        records = index.build_index(info, config, home=home)
        assert records is not None
        with writing:
            store.add_index(records)
    store.close()
    wrong = differing(job, model, contexts)
    return {
        "cpu_s": whole.cpu_s,
        "wall_s": whole.wall_s,
        "store_s": writing.cpu_s,
        "database_bytes": Path(job.database).stat().st_size,
        "n_examples": n_examples(job),
        "features_checked": CHECKED_FEATURES,
        "features_wrong": wrong,
        "maxima": maxima(job),
        "l0": records.info.metrics.l0,
        "fvu": records.info.metrics.fvu,
    }


def warm_up(info: SAEInfo, config: IndexConfig, contexts: list[TokenContext], home: Path) -> None:
    """Loads what Numba has compiled, with an index of a few contexts."""
    few = index.read_contexts
    index.read_contexts = lambda *_, **__: ContextFile(contexts[:64], folder=home)  # type: ignore[assignment]
    records = index.build_index(info, IndexConfig(slug=SLUG, corpus=("few",), tokens=None), home=home)
    assert records is not None
    list(records.features), list(records.examples)
    index.read_contexts = few


def sae_info(job: Job, model: LanguageModel) -> SAEInfo:
    config = TrainConfig(
        model=job.folder, layer=job.layer, corpus=("tokens",), architecture=job.architecture, d_sae=job.d_sae, k=job.k
    )
    return SAEInfo(
        slug=SLUG,
        model=model.info,
        hook_name=config.hook_name,
        layer=job.layer,
        architecture=job.architecture,
        d_in=model.info.d_model,
        d_sae=job.d_sae,
        k=job.k,
        n_training_tokens=0,
        weights_path=job.sae,
        created_at=datetime.now(tz=UTC),
        config={"dtype": "float32", "context_size": 128},
    )


def n_examples(job: Job) -> int:
    """Of all features, from those of every sixteenth."""
    looked_at = range(0, job.d_sae, 16)
    store = Store.open(f"sqlite:///{job.database}")
    total = sum(len(store.feature(SLUG, number).examples) for number in looked_at)
    store.close()
    return round(total * job.d_sae / len(looked_at))


def maxima(job: Job) -> list[float]:
    store = Store.open(f"sqlite:///{job.database}")
    points = store.feature_points(SLUG)
    store.close()
    return [point.max_activation for point in points[: job.n_features]]


@torch.inference_mode()
def differing(job: Job, model: LanguageModel, contexts: list[TokenContext]) -> int:
    """Features whose top contexts are not those that all activations, sorted, give; ties aside."""
    sae = load_sae(Path(job.sae))
    peaks, keys = [], []
    hook = f"blocks.{job.layer}.hook_resid_post"
    for start in range(0, len(contexts), 32):
        batch = contexts[start : start + 32]
        ids = torch.from_numpy(np.stack([context.token_ids for context in batch]))
        with model.reading((hook,)) as read:
            (acts,) = read(ids, torch.ones_like(ids, dtype=torch.bool))
        code = sae.encode(acts[:, 1:].reshape(-1, acts.shape[2])).dense()[:, :CHECKED_FEATURES]
        code = code.reshape(len(batch), -1, CHECKED_FEATURES)
        best = code.max(dim=1)
        peaks.append(best.values)
        texts = torch.from_numpy(text_keys(batch).astype(np.int64)).reshape(len(batch), -1)[:, 1:]
        keys.append(texts.gather(1, best.indices))
    peak, key = torch.cat(peaks), torch.cat(keys)
    store = Store.open(f"sqlite:///{job.database}")
    wrong = 0
    for feature in range(CHECKED_FEATURES):
        expected: dict[int, float] = {}
        for context in peak[:, feature].argsort(descending=True, stable=True).tolist():
            if peak[context, feature] > 0:
                expected.setdefault(int(key[context, feature]), float(peak[context, feature]))
            if len(expected) == 20:
                break
        shown = [e.activation for e in store.feature(SLUG, feature).examples if e.band == 0]
        wrong += not np.allclose(shown, list(expected.values()), rtol=1e-3)
    store.close()
    return wrong


if __name__ == "__main__":
    answer(work)
