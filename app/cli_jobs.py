"""What takes minutes at the command line: train, index, map, and enter the outcome in the database.

Each says on the terminal when it was stopped, and goes on from there when it is asked again.
"""

import sys
from contextlib import closing
from typing import TYPE_CHECKING

from app.access.commands import at_command_line
from app.settings import Settings
from sae_core.disk import saving
from sae_core.errors import InputError

if TYPE_CHECKING:
    from sae_core.config import IndexConfig, TrainConfig
    from sae_core.records import SAEInfo
    from sae_core.store import Store


def open_store(settings: Settings, *, upgrades: bool = False) -> "Store":
    """The database, on behalf of whoever is at the command line: the audit trail names them."""
    from sae_core.store import Store

    with saving(settings.home):
        settings.home.mkdir(parents=True, exist_ok=True)
    store = Store.open(settings.database_url, upgrades=upgrades, new_saes=settings.visibility)
    return store.seen_by(at_command_line())


def train_and_add(configs: "dict[str, TrainConfig]", *, settings: Settings) -> "list[SAEInfo] | None":
    """Trains, on one pass through the model, and enters the SAEs in the database; None if it was stopped."""
    from sae_core.loading import load_tokenizer
    from sae_core.tokens import vocabulary
    from sae_core.train import train_together

    with closing(open_store(settings)) as store:
        try:
            infos = train_together(configs, runs=settings.home / "runs")
            if infos is not None:
                known = vocabulary(load_tokenizer(infos[0].model.model_name))
                for info in infos:
                    store.add_sae(info, known)
        except KeyboardInterrupt:  # while the model is loaded, or between training and the database
            infos = None
    if infos is None:
        print("saescope: stopped; the same command goes on from here.", file=sys.stderr)
    return infos


def index_and_add(config: "IndexConfig", *, settings: Settings, merges: bool = False) -> bool:
    """Indexes, or merges shards, and enters the index in the database; False if it was stopped."""
    from sae_core.index import build_index, merge_shards

    with closing(open_store(settings)) as store:
        sae = store.sae(config.slug).sae
        try:
            build = merge_shards if merges else build_index
            records = build(sae, config, home=settings.home, keep=store.add_index)
        except KeyboardInterrupt:  # while the text is read, or what was gathered is stored
            records = None
    if records is None:
        print("saescope: stopped; the same command goes on from here.", file=sys.stderr)
        return False
    metrics = records.info.metrics
    recovered = "" if metrics.ce_recovered is None else f"  CE recovered {metrics.ce_recovered:.3f}"
    print(
        f"{records.info.corpus.n_tokens:,} tokens in {records.info.seconds:.0f} s:  FVU {metrics.fvu:.3f}  "
        f"L0 {metrics.l0:.1f}  dead {metrics.dead_share:.1%}{recovered}"
    )
    return True


def map_if_missing(slug: str, *, settings: Settings) -> bool:
    """The last step of an index, after it is there to be read; False if it was stopped, which leaves the rest whole."""
    with closing(open_store(settings)) as store:
        if store.feature_map(slug) is not None:
            return True
    try:
        if map_and_add(slug, settings=settings):
            return True
        print(f"saescope: stopped; the index is there, and `saescope map {slug}` makes its map.", file=sys.stderr)
        return False
    except InputError as error:  # too few features, or an index without nearest ones: no fault of the index
        print(f"No map: {error}", file=sys.stderr)
        return True


def map_and_add(slug: str, *, settings: Settings, seed: int = 0) -> bool:
    """Makes the SAE's map and enters it in the database; False if it was stopped."""
    from sae_core.feature_map import feature_map

    with closing(open_store(settings)) as store:
        try:
            made = feature_map(store.neighbours(slug), seed=seed)
        except KeyboardInterrupt:  # before the first step, or asked twice
            made = None
        if made is not None:
            store.add_map(slug, made)
    return made is not None
