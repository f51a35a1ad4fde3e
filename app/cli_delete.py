"""`saescope delete`: an SAE out of the database, and its files if they are asked away."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from app.settings import Settings
from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from sae_core.store import Store

DELETE = """\
Delete an SAE from the database, with its indexes, labels, scores and map. Lists that hold its features, shared probes
and steerings stay and say that it is gone; who could not find it does not find them either. Its files (weights, curves,
what indexing gathered) stay too, so that the command which made it brings it back in seconds; `--files` deletes them.
Nothing is deleted while somebody trains or indexes it. It asks first, on a terminal."""

DELETE_EXAMPLES = """\
examples:
  saescope delete SLUG
  saescope delete SLUG --files --yes"""


def add_delete_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `saescope delete`."""
    parser.add_argument("slug", metavar="SLUG", help="the SAE")
    parser.add_argument("--files", action="store_true", help="also its folders in HOME/runs, imports and indexes")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run_delete(
    arguments: argparse.Namespace, settings: Settings, store: "Store", *, asks: Callable[[str], str] = input
) -> int:
    """`saescope delete`: 0, or 1 if it was not confirmed."""
    from app.deletion import delete, sentences, what_goes

    found = what_goes(store, arguments.slug, home=settings.home)
    for sentence in sentences(found):
        print(sentence)
    for folder in found.folders:
        print(f"{'Goes' if arguments.files else 'Stays'}: {folder.path} ({folder.n_bytes / 1e6:.1f} MB)")
    if not arguments.yes and not _confirms(found.slug, asks):
        print("Nothing was deleted.")
        return 1
    delete(store, arguments.slug, home=settings.home, files=arguments.files)
    print(f"{found.slug} is deleted.")
    return 0


def _confirms(slug: str, asks: Callable[[str], str]) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("Nothing was deleted: there is nobody to ask here, so say --yes if it is meant.")
    try:
        return asks(f"To delete it, type its name, {slug}: ").strip() == slug
    except EOFError:
        return False
