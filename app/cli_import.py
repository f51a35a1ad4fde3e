"""`saescope import`: an SAE from elsewhere into the home and the database, checked on a few activations."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from app.settings import Settings
from sae_core.arguments import add_device_argument, count
from sae_core.config import HOOKS
from sae_core.errors import ConfigError, ConflictError, CorpusError, ModelError, NotFoundError

if TYPE_CHECKING:
    from sae_core.formats.checking import Check
    from sae_core.formats.importing import Imported
    from sae_core.records import SAEInfo
    from sae_core.store import Store

STOPPED = 130  # as in app.cli

IMPORT = """\
Bring an SAE that was trained elsewhere into saescope: from a file, a folder or the hub. The format is recognised by
what the file holds; the weights are copied into HOME/imports/SLUG as saescope's own, the source is not touched. Then
FVU and L0 are measured on a few of the model's activations, and if they look wrong, what to suspect is said.
docs/importing.md lists the formats and what becomes of their conventions. A folder of Neuronpedia's bulk files becomes
a dashboard without a model, which cannot be probed: docs/dashboard-files.md."""

IMPORT_EXAMPLES = """\
examples:
  saescope import ./my-saelens-sae --model gpt2
  saescope import ./sparsify/layers.5.mlp --model EleutherAI/pythia-70m
  saescope import ./trainer_0/ae.pt --model EleutherAI/pythia-70m --layer 3
  saescope import google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82 --model google/gemma-2-2b
  saescope import ./v1/gpt2-small/6-res-jb              Neuronpedia's features/, activations/, explanations/"""


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `saescope import`."""
    parser.add_argument("source", metavar="PATH_OR_HUB_ID", help="file, folder, or OWNER/REPO[/FOLDER][@REVISION]")
    parser.add_argument("--format", metavar="NAME", help="the format, where it is not recognised")
    what = parser.add_argument_group("what it was trained on")
    what.add_argument("--model", metavar="PATH_OR_HUB_ID", help="language model; 'demo' ships here")
    what.add_argument("--layer", type=int, metavar="N", help="block whose activations it reads (as the files say)")
    what.add_argument("--hook", metavar="POINT", help=f"where in that block: {', '.join(HOOKS)} (as the files say)")
    what.add_argument("--target-hook", metavar="POINT", help="what a transcoder predicts (as the files say)")
    what.add_argument("--target-layer", type=int, metavar="N", help="block of a transcoder's target (the same)")
    what.add_argument("--context-size", type=count, metavar="N", help="tokens per context (as the files say, or 128)")
    what.add_argument(
        "--bos",
        dest="prepend_bos",
        action=argparse.BooleanOptionalAction,
        help="contexts start with the BOS token, or not (as the files say, or as the tokenizer does by itself)",
    )
    what.add_argument(
        "--input-scale", type=float, metavar="X", help="it was trained on activations times X, which is not folded in"
    )
    what.add_argument("--dtype", default="float32", metavar="TYPE", help="of the model: float32, bfloat16 or float16")
    what.add_argument("--slug", metavar="NAME", help="its name in URLs (from model, layer, format and width)")
    what.add_argument(
        "--replace",
        dest="replaces",
        action="store_true",
        help="in place of an import of that name with other settings, whose indexes and labels go",
    )
    check = parser.add_argument_group("the self-check")
    check.add_argument(
        "--check-corpus", nargs="+", default=["python-docs"], metavar="SOURCE", help="text to check it on (python-docs)"
    )
    check.add_argument("--text-field", default="text", metavar="NAME", help="column of .jsonl and .parquet rows (text)")
    check.add_argument(
        "--no-check", dest="checks", action="store_false", help="measure nothing, which needs no weights"
    )
    add_device_argument(check)


def run_import(arguments: argparse.Namespace, settings: Settings, store: "Store") -> int:
    """`saescope import`: 0, or 1 if the self-check found something wrong; then the SAE is imported all the same."""
    from sae_core.dashboards import NEURONPEDIA
    from sae_core.dashboards.neuronpedia_files import is_bulk_folder

    folder = Path(arguments.source).expanduser()
    if arguments.format == NEURONPEDIA or (arguments.format is None and is_bulk_folder(folder)):
        return _import_dashboard(arguments, folder, settings, store)
    if arguments.model is None:
        raise ConfigError("Say with --model which language model the SAE was trained on, a folder or a hub id.")
    return _import_weights(arguments, settings, store)


def _import_dashboard(arguments: argparse.Namespace, folder: Path, settings: Settings, store: "Store") -> int:
    """Neuronpedia's bulk files: no weights, so no model either."""
    from app.dashboard_import import import_dashboard

    done = import_dashboard(store, folder, home=settings.home, slug=arguments.slug)
    if done is None:
        print("saescope: stopped; the same command goes on from here.", file=sys.stderr)
        return STOPPED
    for line in done.lines():
        print(line)
    return 0


def _import_weights(arguments: argparse.Namespace, settings: Settings, store: "Store") -> int:
    from sae_core.formats.hub import fetched, hub_address
    from sae_core.formats.importing import ImportConfig, import_sae
    from sae_core.loading import load_tokenizer
    from sae_core.tokens import vocabulary

    address = hub_address(arguments.source)
    config = ImportConfig(
        path=fetched(address) if address else Path(arguments.source).expanduser(),
        origin=arguments.source,
        model=arguments.model,
        **{
            name: getattr(arguments, name)
            for name in (
                "format", "layer", "hook", "target_layer", "target_hook", "slug", "input_scale", "dtype",
                "context_size", "prepend_bos", "replaces",
            )
        },
    )  # fmt: skip
    imported = import_sae(config, home=settings.home, check_name=lambda info: _check_unused(store, info))
    store.add_sae(imported.info, vocabulary(load_tokenizer(arguments.model)))
    _say(imported)
    is_right = not arguments.checks or _checked(imported, arguments)
    if not is_right:
        print(f"Once you know: the same command with what it should be and --slug {imported.info.slug} --replace")
        return 1
    print(f"Next: saescope index {imported.info.slug} --corpus {' '.join(arguments.check_corpus)}")
    return 0


def _check_unused(store: "Store", info: "SAEInfo") -> None:
    """Raises ConflictError if the name is another SAE's, which would lose its indexes and labels."""
    try:
        known = store.sae(info.slug).sae
    except NotFoundError:
        return
    if known.weights_path != info.weights_path:
        raise ConflictError(
            f"There is an SAE {info.slug} already, which is not this one; give this one another --slug."
        )


def _say(imported: "Imported") -> None:
    info = imported.info
    where = info.hook_name if info.target_hook_name == info.hook_name else f"{info.hook_name} → {info.target_hook_name}"
    k = f", k {info.k}" if info.k else ""
    print(f"Imported {info.slug} ({imported.format}): {info.architecture}, {info.d_sae:,} features{k}, {where}")
    for note in imported.notes:
        print(f"  {note}")
    for doubt in imported.doubts:
        print(f"saescope: take care: {doubt}.", file=sys.stderr)


def _checked(imported: "Imported", arguments: argparse.Namespace) -> bool:
    """Measures it and prints what came of it; True unless it looks wrong."""
    from sae_core.formats.checking import self_check

    try:
        check = self_check(
            imported.info,
            corpus=tuple(arguments.check_corpus),
            declared_l0=imported.l0,
            device=arguments.device,
            text_field=arguments.text_field,
        )
    except (ModelError, CorpusError) as error:
        print(f"saescope: not checked: {error}", file=sys.stderr)
        return True
    declared = "" if imported.l0 is None else f" (declared {imported.l0:g})"
    print(f"Checked on {check.n_tokens:,} tokens: FVU {check.fvu:.3f}  L0 {check.l0:.1f}{declared}")
    if not check.looks_right:
        print(f"saescope: {_suspicion(check, imported)}", file=sys.stderr)
    return check.looks_right


def _suspicion(check: "Check", imported: "Imported") -> str:
    wrong = "FVU above 1 means that it reconstructs worse than the mean" if check.fvu > 1 else "L0 is far from declared"
    suspects = [*check.suspects, *imported.doubts]
    if suspects:
        return f"this looks wrong: {wrong}. Suspect its {'; or its '.join(suspects)}."
    return (
        f"this looks wrong: {wrong}, and no other bias subtraction, normalisation, hook point or BOS mends it. "
        "Is it the model that it was trained on, and its kind of text (--check-corpus)?"
    )
