"""`saescope labels`: labels to a file, and other people's labels in."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sae_core.disk import saving

if TYPE_CHECKING:
    from sae_core.store import Store

LABELS = """\
Exchange labels with others as a .jsonl or .csv file: what each feature is called, by whom, of which kind (human or
automatic), with which score, and when. `export` writes an SAE's labels, `import` merges a file into them: a label that
was written later takes the place of an earlier one of the same feature and kind, nothing else is changed, and the same
file again changes nothing. docs/dashboard-files.md says more."""

LABELS_EXAMPLES = """\
examples:
  saescope labels export SLUG --output labels.csv
  saescope labels import SLUG labels-of-a-teammate.jsonl"""


def add_labels_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `saescope labels`."""
    parser.add_argument("what", choices=("export", "import"), help="which way")
    parser.add_argument("slug", metavar="SLUG", help="the SAE")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="what to import, .jsonl or .csv")
    parser.add_argument(
        "--kind", choices=("human", "automatic"), help="export only what people, or only what programs say (both)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to export to (SLUG-labels.jsonl here)")


def run_labels(arguments: argparse.Namespace, store: "Store") -> int:
    """`saescope labels`."""
    from app.label_files import read_labels, write_labels
    from sae_core.errors import ConfigError

    if arguments.what == "import":
        if arguments.file is None or arguments.output or arguments.kind:
            raise ConfigError("Name the file, and nothing else: saescope labels import SLUG FILE.")
        merged = store.merge_labels(arguments.slug, read_labels(arguments.file))
        print(
            f"{merged.added:,} labels added, {merged.replaced:,} replaced by later ones, {merged.same:,} were here "
            f"already, {merged.kept:,} left out because newer ones are here."
        )
        return 0
    if arguments.file is not None:
        raise ConfigError("Say with --output where to export to: saescope labels export SLUG --output FILE.")
    path: Path = arguments.output or Path(f"{arguments.slug}-labels.jsonl")
    with saving(path.parent):
        n = write_labels(
            (pair for pair in store.all_labels(arguments.slug) if arguments.kind in (None, pair[1].kind)), path
        )
    print(f"Written: {path} ({n:,} labels)")
    return 0
