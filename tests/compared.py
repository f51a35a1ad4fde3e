"""A store to compare things in: SAEs with weights on disk, on shared and on different texts, and with none.

"demo" (on "stories" and, newer, "poems") and "other" (on "poems", 200 features) read the same place of the same model;
the first 40 features of "other" point where those of "demo" do, but for some noise. "wide" reads wider vectors of
another model, on "songs". "gone" is like "demo" without its weights, and "unindexed" has weights alone.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sae_core.store import Store
from tests.factories import NOW, fill_store, make_model, make_records, make_sae, make_vocabulary

WIDTH, N_OTHER, N_SHARED = 64, 200, 40


def directions() -> dict[str, np.ndarray[Any, Any]]:
    """W_dec of each SAE that has one."""
    rng = np.random.default_rng(0)
    demo = rng.normal(size=(300, WIDTH)).astype(np.float32)
    other = rng.normal(size=(N_OTHER, WIDTH)).astype(np.float32)
    other[:N_SHARED] = demo[:N_SHARED] + 0.3 * rng.normal(size=(N_SHARED, WIDTH))
    wide = rng.normal(size=(300, 96)).astype(np.float32)
    return {"demo": demo, "other": other, "wide": wide, "unindexed": demo[:, ::-1].copy()}


def make_compared_store(url: str, folder: Path) -> Store:
    for slug, W_dec in directions().items():
        (folder / slug).mkdir()
        save_file({"W_dec": W_dec}, folder / slug / "sae.safetensors")
    store = Store.open(url)
    fill_store(store)
    for slug in ("demo", "unindexed"):
        store.add_sae(make_sae(slug, weights_path=str(folder / slug)), make_vocabulary())
    add = {"created_at": NOW + timedelta(minutes=2)}
    other = make_sae("other", d_sae=N_OTHER, weights_path=str(folder / "other"), architecture="batchtopk", **add)
    wide = make_sae("wide", d_in=96, weights_path=str(folder / "wide"), model=make_model(model_name="big", d_model=96))
    store.add_sae(other, make_vocabulary())
    store.add_sae(wide, make_vocabulary())
    store.add_sae(make_sae("gone", weights_path=str(folder / "nowhere")), make_vocabulary())
    store.add_index(make_records("demo", corpus="stories"))
    store.add_index(make_records("demo", corpus="poems", n_contexts=40, seed=1, **add))
    store.add_index(make_records("other", corpus="poems", n_contexts=40, n_features=N_OTHER, seed=2))
    store.add_index(make_records("wide", corpus="songs", seed=3))
    store.add_index(make_records("gone", corpus="poems", n_contexts=40, seed=4))
    return store
