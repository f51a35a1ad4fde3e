"""`saescope export`: what saescope holds, as files for others: an HTML page of features, an SAE in another format."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from sae_core.store import Store

HTML = "html"
WEIGHTS = ("saelens", "sparsify", "dictionary_learning")  # which `sae_core.formats` writes

EXPORT = """\
Write what saescope holds into files for others. With --format html (which needs no saying) features go into one HTML
file that opens anywhere, offline and without a script: labels, statistics, promoted and suppressed tokens, histogram
and examples as on their pages, in light and dark; with --list a list of the dashboard, with its notes, in its order.
The other formats write an SAE's weights as another tool saves them, to be loaded there: docs/importing.md."""

EXPORT_EXAMPLES = """\
examples:
  saescope export SLUG --features 1,5,9-12
  saescope export --list k3v9… --output spouses.html
  saescope export SLUG --format saelens --output ./for-saelens"""


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `saescope export`."""
    parser.add_argument("slug", nargs="?", metavar="SLUG", help="the SAE")
    parser.add_argument(
        "--format",
        choices=(HTML, *WEIGHTS),
        default=HTML,
        help=f"{HTML}, or the tool that shall read the weights ({HTML})",
    )
    what = parser.add_argument_group("which features (html)")
    what.add_argument("--features", metavar="LIST", help="numbers and ranges: 1,5,9-12")
    what.add_argument("--list", metavar="ID", help="a list of the dashboard: the end of its address")
    what.add_argument("--corpus", metavar="NAME", help="on which they were measured (the newest index)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="where to (SLUG-features.html or list-ID.html here; for weights the folder SLUG-FORMAT)",
    )


def run_export(arguments: argparse.Namespace, store: "Store") -> int:
    """`saescope export`."""
    path = _export_html(arguments, store) if arguments.format == HTML else _export_weights(arguments, store)
    size = sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size
    print(f"Written: {path} ({size / 1e6:.1f} MB)")
    return 0


def _export_html(arguments: argparse.Namespace, store: "Store") -> Path:
    from app.export import exported_file, write

    name, pieces = exported_file(
        store, arguments.slug, features=arguments.features, list_id=arguments.list, corpus=arguments.corpus
    )
    path: Path = arguments.output or Path(name)
    write(pieces, path)
    return path


def _export_weights(arguments: argparse.Namespace, store: "Store") -> Path:
    from sae_core.formats.exporting import export_sae

    if arguments.features or arguments.list or arguments.corpus:
        raise ConfigError(
            f"--features, --list and --corpus are for --format {HTML}; {arguments.format} takes a whole SAE."
        )
    if arguments.slug is None:
        raise ConfigError(f"Name the SAE: saescope export SLUG --format {arguments.format}.")
    folder: Path = arguments.output or Path(f"{arguments.slug}-{arguments.format}")
    for note in export_sae(store.sae(arguments.slug).sae, arguments.format, folder):
        print(note)
    return folder
