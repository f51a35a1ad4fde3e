"""`saescope export`: what saescope holds, as files for others: features as a page or as tables, an SAE's weights."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from sae_core.store import Store

HTML = "html"
TABLES = ("csv", "parquet")
DASHBOARD = "neuronpedia"
WEIGHTS = ("saelens", "sparsify", "dictionary_learning")  # which `sae_core.formats` writes

EXPORT = """\
Write what saescope holds into files for others. With --format html (which needs no saying) features go into one HTML
file that opens anywhere, offline and without a script: labels, statistics, promoted and suppressed tokens, histogram
and examples as on their pages, in light and dark; with --list a list of the dashboard, with its notes, in its order.
csv and parquet write all features and examples of an index as two tables, neuronpedia as
Neuronpedia's bulk files: docs/dashboard-files.md. The other formats write an SAE's weights as another tool saves them,
to be loaded there: docs/importing.md."""

EXPORT_EXAMPLES = """\
examples:
  saescope export SLUG --features 1,5,9-12
  saescope export --list k3v9… --output spouses.html
  saescope export SLUG --format parquet
  saescope export SLUG --format neuronpedia --corpus fineweb
  saescope export SLUG --format saelens --output ./for-saelens"""


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `saescope export`."""
    parser.add_argument("slug", nargs="?", metavar="SLUG", help="the SAE")
    parser.add_argument(
        "--format",
        choices=(HTML, *TABLES, DASHBOARD, *WEIGHTS),
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
        help="where to (SLUG-features.html or list-ID.html here; else the folder SLUG-FORMAT)",
    )


def run_export(arguments: argparse.Namespace, store: "Store") -> int:
    """`saescope export`."""
    if arguments.format == HTML:
        path = _export_html(arguments, store)
    elif arguments.format in WEIGHTS:
        path = _export_weights(arguments, store)
    else:
        path = _export_index(arguments, store)
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


def _export_index(arguments: argparse.Namespace, store: "Store") -> Path:
    """All features and examples of one index."""
    from app.tables import export_tables
    from sae_core.dashboards.neuronpedia_out import export_dashboard

    if arguments.features or arguments.list:
        raise ConfigError(f"--features and --list are for --format {HTML}; {arguments.format} takes a whole index.")
    folder = _folder(arguments)
    if arguments.format == DASHBOARD:
        n = export_dashboard(store, arguments.slug, folder, corpus=arguments.corpus)
    else:
        n = export_tables(store, arguments.slug, folder, kind=arguments.format, corpus=arguments.corpus)
    print(f"{n:,} features with their examples.")
    return folder


def _folder(arguments: argparse.Namespace) -> Path:
    if arguments.slug is None:
        raise ConfigError(f"Name the SAE: saescope export SLUG --format {arguments.format}.")
    folder: Path = arguments.output or Path(f"{arguments.slug}-{arguments.format}")
    return folder


def _export_weights(arguments: argparse.Namespace, store: "Store") -> Path:
    from sae_core.formats.exporting import export_sae

    if arguments.features or arguments.list or arguments.corpus:
        raise ConfigError(
            f"--features, --list and --corpus are for --format {HTML}; {arguments.format} takes a whole SAE."
        )
    folder = _folder(arguments)
    for note in export_sae(store.sae(arguments.slug).sae, arguments.format, folder):
        print(note)
    return folder
