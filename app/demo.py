"""What `saescope demo` trains and indexes, and whether that is done already. Loads no torch."""

from pathlib import Path

from sae_core import run_log
from sae_core.config import IndexConfig, TrainConfig
from sae_core.disk import saving
from sae_core.errors import NotFoundError
from sae_core.run_log import CONFIG_FILE
from sae_core.runs import SHAPE_FILE
from sae_core.store import Store

SLUG = "demo-l3-4k"
RUN_PATH = f"/runs/{SLUG}?follow=1"  # the page that shows how it goes, and goes on to the index and to the SAE
TRAINING = TrainConfig(model="demo", layer=3, corpus=("python-docs",), d_sae=4096, k=32, tokens=1_200_000)
INDEXING = IndexConfig(slug=SLUG, corpus=("python-docs",), tokens=600_000)


def announce(home: Path) -> None:
    """Gives the run its page at once, while what trains is still being loaded. Raises ConfigError, DiskFullError."""
    folder = home / "runs" / SLUG
    if (folder / SHAPE_FILE).exists():
        return  # it is trained, and will be indexed
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CONFIG_FILE).exists():
            TRAINING.save(folder / CONFIG_FILE)
        run_log.announce(run_log.RunFiles(folder))


def is_ready(store: Store) -> bool:
    """Whether the database holds the demo's SAE with an index."""
    try:
        store.index(SLUG)
    except NotFoundError:
        return False
    return True
