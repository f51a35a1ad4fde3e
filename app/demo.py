"""What `saescope demo` trains and indexes, and whether that is done already. Loads no torch."""

from sae_core.config import IndexConfig, TrainConfig
from sae_core.errors import NotFoundError
from sae_core.store import Store

SLUG = "demo-l3-4k"
TRAINING = TrainConfig(model="demo", layer=3, corpus=("python-docs",), d_sae=4096, k=32, tokens=1_200_000)
INDEXING = IndexConfig(slug=SLUG, corpus=("python-docs",), tokens=600_000)


def is_ready(store: Store) -> bool:
    """Whether the database holds the demo's SAE with an index."""
    try:
        store.index(SLUG)
    except NotFoundError:
        return False
    return True
