"""What `saescope demo` trains and indexes, and whether that is done already. Loads no torch."""

from app.settings import Settings
from sae_core.config import IndexConfig, TrainConfig
from sae_core.errors import NotFoundError
from sae_core.store import Store

SLUG = "demo-l3-4k"
TRAINING = TrainConfig(model="demo", layer=3, corpus=("python-docs",), d_sae=4096, k=32, tokens=2_000_000)
INDEXING = IndexConfig(slug=SLUG, corpus=("python-docs",), tokens=1_000_000)


def is_ready(settings: Settings) -> bool:
    """Whether the database holds the demo's SAE with an index."""
    settings.home.mkdir(parents=True, exist_ok=True)
    store = Store.open(settings.database_url)
    try:
        store.index(SLUG)
    except NotFoundError:
        return False
    finally:
        store.close()
    return True
