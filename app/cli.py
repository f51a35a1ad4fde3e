"""The `saescope` command: train, index, serve, and the demo that does all three.

Parses, makes one call and prints. The one place that maps errors to exit codes: 2 for what the user can put right in
the command, 1 for what went wrong around it, 130 for Ctrl-C.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.access.commands import (
    add_access_commands,
    add_serving_arguments,
    serving_overrides,
    who_may_come,
)
from app.cli_delete import DELETE, DELETE_EXAMPLES, add_delete_arguments, run_delete
from app.cli_explain import (
    BASIS,
    LABEL,
    LABEL_EXAMPLES,
    add_basis_arguments,
    add_label_arguments,
    run_basis,
    run_label,
)
from app.cli_export import EXPORT, EXPORT_EXAMPLES, add_export_arguments, run_export
from app.cli_import import IMPORT, IMPORT_EXAMPLES, add_import_arguments, run_import
from app.cli_jobs import index_and_add, map_and_add, map_if_missing, open_store, train_and_add
from app.cli_labels import LABELS, LABELS_EXAMPLES, add_labels_arguments, run_labels
from app.settings import Settings
from sae_core.arguments import (
    add_device_argument,
    add_index_arguments,
    add_measuring_arguments,
    add_train_arguments,
    count,
    index_config,
    sweep_configs,
    train_config,
)
from sae_core.errors import ConfigError, SaescopeError
from sae_core.progress import interrupts_heard, stop_request

if TYPE_CHECKING:
    from sae_core.config import IndexConfig
    from sae_core.index_folder import Shard
    from sae_core.store import Store

STOPPED = 130

INTRODUCTION = """\
See what a language model has learned: train a sparse autoencoder (SAE) on its activations, find for every feature
the text that activates it most, and browse the result.

  saescope demo                                                 everything, on the small model that ships
  saescope train --model PATH_OR_HUB_ID --layer 6 --corpus 'texts/*.txt'
  saescope index SLUG --corpus 'texts/*.txt'
  saescope import PATH_OR_HUB_ID --model PATH_OR_HUB_ID         an SAE that was trained elsewhere
  saescope serve
  saescope export SLUG --features 1,5,9-12                      a file to send to somebody"""

TRAIN = """\
Train an SAE on the activations of a language model, or a transcoder that predicts one hook point from another.

The model is read from a folder, from the Hugging Face cache or from the hub. Training shows FVU (the share of variance
not explained), L0 (active features per token) and the share of dead features. Ctrl-C stops it after the current step;
the same command goes on from there. The result lands in HOME/runs/SLUG and in the database's list of SAEs."""

TRAIN_EXAMPLES = """\
examples:
  saescope train --model demo --layer 3 --corpus python-docs
  saescope train --model meta-llama/Llama-3.2-1B --layer 8 --dtype bfloat16 \\
      --corpus hub:HuggingFaceFW/fineweb-edu --d-sae 32768 --k 64 --tokens 100M
  saescope train --model ./my-model --layer 6 --hook mlp_out --corpus notes.jsonl --text-field body
  saescope train --model demo --layer 2 --hook mlp_in --target-hook mlp_out --architecture batchtopk \\
      --corpus python-docs"""

SWEEP = """\
Train an SAE for every combination of the given --layer, --architecture, --d-sae, --k and --seed, all on one pass
through the model, then measure each as `saescope eval` does and print one table, which the dashboard plots. Each SAE
is the one that `saescope train` would have made alone. Ctrl-C stops after the current step; the same command goes on
from there."""

SWEEP_EXAMPLES = """\
examples:
  saescope sweep --model demo --layer 3 --corpus python-docs --architecture topk batchtopk jumprelu --k 8 16 32 64
  saescope sweep --model ./my-model --layer 4 8 12 --corpus notes.jsonl --seed 0 1 --slug mine"""

INDEX = """\
Measure an SAE on a corpus: one pass of the model finds each feature's density, its top examples, samples of weaker
activations, the tokens it promotes and the features nearest to it. The database shows the index when it is complete.
Indexing the same SAE on a corpus of the same name again replaces the older index."""

MAP = """\
Lay out an SAE's features in the plane by their decoder directions, so that those that write alike lie together: its
map in the dashboard. `saescope index` does it at its end for an SAE that has none; an SAE that was indexed by an older
saescope gets its map from this command. It needs neither the model nor the weights, and takes seconds for thousands
of features, minutes for a hundred thousand."""

EVAL = """\
Measure how good an SAE is on a corpus, in one pass of the model: how well it reconstructs (FVU, explained variance,
cosine), what the model still predicts with the reconstruction in place (CE losses, CE recovered, KL), and how its
features are spread (L0, dead and dense shares, densities). Nothing is stored: `saescope index` stores the same numbers
with its index. docs/metrics.md defines each."""

SERVE = """\
Serve the dashboard. Pages answer at once; the model is loaded, in a process of its own, when a text is first probed."""

DB = """\
Look after the database. `check` takes the checksums of examples, contexts and weights again and compares them with
those that were taken when they were written. `upgrade` brings a database that an older saescope made up to date; copy
it first. `backup FILE` copies an SQLite database while others read and write it."""

DOCTOR = """\
Look at this installation (packages, home, disk, database, weights, tokens, with the settings of the environment) and
say in plain words what is wrong. Exit code 1 if anything is."""

DEMO = """\
Train an SAE on the small language model that ships with saescope, index it on Python's own documentation and sources,
and serve the dashboard, which is there from the start and shows how training goes. What was done before is not done
again: after Ctrl-C the same command goes on, and once all is done it serves at once."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        with interrupts_heard():
            arguments = make_parser().parse_args(argv)
            run: Callable[[argparse.Namespace], int] = arguments.run
            return run(arguments)
    except SaescopeError as error:
        print(f"saescope: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("saescope: stopped.", file=sys.stderr)
        return STOPPED


def make_parser() -> argparse.ArgumentParser:
    """The command line as a parser; its help is the documentation of the commands."""
    parser = argparse.ArgumentParser(
        prog="saescope", description=INTRODUCTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    training = _command(commands, "train", "train an SAE on a model's activations", TRAIN, TRAIN_EXAMPLES)
    add_train_arguments(training)
    training.set_defaults(run=run_train)
    sweeping = _command(commands, "sweep", "train many SAEs at once and compare them", SWEEP, SWEEP_EXAMPLES)
    add_train_arguments(sweeping, sweeps=True)
    _add_comparison(sweeping)
    sweeping.set_defaults(run=run_sweep)
    _add_index(_command(commands, "index", "measure an SAE on a corpus and fill the dashboard", INDEX))
    mapping = _command(commands, "map", "lay out an SAE's features in the plane", MAP)
    mapping.add_argument("slug", metavar="SLUG", help="the SAE")
    mapping.add_argument("--seed", type=int, default=0, metavar="N", help="another number gives another map (0)")
    mapping.set_defaults(run=run_map)
    _add_eval(_command(commands, "eval", "measure how good an SAE is on a corpus", EVAL))
    importing = _command(commands, "import", "bring in an SAE that was trained elsewhere", IMPORT, IMPORT_EXAMPLES)
    add_import_arguments(importing)
    importing.set_defaults(run=run_import_command)
    serve = _command(commands, "serve", "serve the dashboard", SERVE)
    _add_address(serve)
    add_serving_arguments(serve)
    serve.set_defaults(run=run_serve)
    basis = _command(commands, "basis", "make neurons or principal components to compare an SAE with", BASIS)
    add_basis_arguments(basis)
    basis.set_defaults(run=lambda arguments: run_basis(arguments, _settings(arguments)))
    labelling = _command(commands, "label", "name features and test the names", LABEL, LABEL_EXAMPLES)
    add_label_arguments(labelling)
    labelling.set_defaults(run=lambda arguments: run_label(arguments, _settings(arguments)))
    exporting = _command(commands, "export", "write features or an SAE into files", EXPORT, EXPORT_EXAMPLES)
    add_export_arguments(exporting)
    exporting.set_defaults(run=run_export_command)
    labelling = _command(commands, "labels", "write labels into a file, or merge a file's", LABELS, LABELS_EXAMPLES)
    add_labels_arguments(labelling)
    labelling.set_defaults(run=run_labels_command)
    deleting = _command(commands, "delete", "delete an SAE", DELETE, DELETE_EXAMPLES)
    add_delete_arguments(deleting)
    deleting.set_defaults(run=run_delete_command)
    add_access_commands(partial(_command, commands), opens=_opened)
    _add_db(_command(commands, "db", "check, upgrade or copy the database", DB))
    _command(commands, "doctor", "say what is wrong with the installation", DOCTOR).set_defaults(run=run_doctor)
    demo = _command(commands, "demo", "train, index and serve the demo", DEMO)
    _add_address(demo)
    demo.set_defaults(run=run_demo)
    return parser


def run_train(arguments: argparse.Namespace) -> int:
    """`saescope train`."""
    from sae_core.train import default_slug

    config = train_config(arguments)
    infos = train_and_add({arguments.slug or default_slug(config): config}, settings=_settings(arguments))
    if infos is None:
        return STOPPED
    print(f"The SAE is ready. Next: saescope index {infos[0].slug} --corpus {' '.join(arguments.corpus)}")
    return 0


def run_sweep(arguments: argparse.Namespace) -> int:
    """`saescope sweep`."""
    from app import card
    from app.pareto import save_evaluation
    from sae_core.config import IndexConfig
    from sae_core.evaluate import evaluate
    from sae_core.train import default_slug

    infos = train_and_add(sweep_configs(arguments, named=default_slug), settings=_settings(arguments))
    if infos is None:
        return STOPPED
    evaluations = []
    for info in infos:
        config = IndexConfig(
            slug=info.slug,
            corpus=tuple(arguments.eval_corpus or arguments.corpus),
            text_field=arguments.text_field,
            tokens=arguments.eval_tokens,
            device=arguments.device,
        )
        evaluation = evaluate(info, config)
        if evaluation is None:
            print("saescope: stopped; the SAEs are trained, the same command compares them.", file=sys.stderr)
            return STOPPED
        save_evaluation(evaluation, folder=Path(info.weights_path))  # for the SAE page's plot
        evaluations.append(evaluation)
    print(card.as_json_lines(evaluations) if arguments.json else card.table(infos, evaluations))
    return 0


def run_index(arguments: argparse.Namespace) -> int:
    """`saescope index`."""
    from sae_core.index_folder import Shard

    config, settings = index_config(arguments), _settings(arguments)
    if arguments.shard is not None:
        if arguments.merge:
            raise ConfigError("Give --shard or --merge, not both.")
        return _index_shard(config, Shard.parse(arguments.shard), settings=settings)
    if not index_and_add(config, settings=settings, merges=arguments.merge):
        return STOPPED
    print(f"The index is ready. Next: saescope serve, then open /saes/{arguments.slug}", flush=True)
    map_if_missing(arguments.slug, settings=settings)
    return 0


def run_map(arguments: argparse.Namespace) -> int:
    """`saescope map`."""
    if not map_and_add(arguments.slug, seed=arguments.seed, settings=_settings(arguments)):
        print("saescope: stopped; there is no new map.", file=sys.stderr)
        return STOPPED
    print(f"The map is ready: /saes/{arguments.slug}/map")
    return 0


def _index_shard(config: "IndexConfig", shard: "Shard", *, settings: Settings) -> int:
    from sae_core.index import index_shard

    with closing(open_store(settings)) as store:
        sae = store.sae(config.slug).sae
    if not index_shard(sae, config, shard, home=settings.home):
        print("saescope: stopped; the same command goes on from here.", file=sys.stderr)
        return STOPPED
    print(f"Shard {shard.number} of {shard.count} is gathered. When all are: the same command with --merge.")
    return 0


def run_eval(arguments: argparse.Namespace) -> int:
    """`saescope eval`."""
    from app import card
    from sae_core.evaluate import evaluate

    config = index_config(arguments)
    with closing(open_store(_settings(arguments))) as store:
        sae = store.sae(config.slug).sae
    evaluation = evaluate(sae, config)
    if evaluation is None:
        print("saescope: stopped; there is nothing to show.", file=sys.stderr)
        return STOPPED
    print(card.as_json(evaluation) if arguments.json else card.card(evaluation))
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    """`saescope serve`."""
    from app.server import listen, serve

    settings = _settings(
        arguments, host=arguments.host, port=arguments.port, device=arguments.device, **serving_overrides(arguments)
    )
    with closing(listen(settings)) as socket:
        with closing(open_store(settings)) as store:
            said = who_may_come(settings, store)
        serve(settings, socket=socket, said=said)
    return 0


def run_import_command(arguments: argparse.Namespace) -> int:
    """`saescope import`."""
    settings = _settings(arguments)
    with closing(open_store(settings)) as store:
        return run_import(arguments, settings, store)


def run_export_command(arguments: argparse.Namespace) -> int:
    """`saescope export`."""
    with closing(open_store(_settings(arguments))) as store:
        return run_export(arguments, store)


def run_labels_command(arguments: argparse.Namespace) -> int:
    """`saescope labels`."""
    with closing(open_store(_settings(arguments))) as store:
        return run_labels(arguments, store)


def run_delete_command(arguments: argparse.Namespace) -> int:
    """`saescope delete`."""
    settings = _settings(arguments)
    with closing(open_store(settings)) as store:
        return run_delete(arguments, settings, store)


def run_db(arguments: argparse.Namespace) -> int:
    """`saescope db`."""
    if (arguments.what == "backup") != (arguments.file is not None):
        raise ConfigError("A backup goes into a file, and nothing else does: saescope db backup FILE.")
    with closing(open_store(_settings(arguments), upgrades=arguments.what == "upgrade")) as store:
        if arguments.what == "upgrade":
            print("The database is up to date.")
            return 0
        if arguments.what == "backup":
            store.backup(arguments.file)
            print(f"Written: {arguments.file} ({arguments.file.stat().st_size / 1e6:.1f} MB)")
            return 0
        found = store.check()
    for sentence in found:
        print(sentence)
    if not found:
        print("Everything is as it was written.")
    return 1 if found else 0


def run_doctor(arguments: argparse.Namespace) -> int:
    """`saescope doctor`."""
    from app.observe.doctor import examine

    found = list(examine(_settings(arguments)))
    for finding in found:
        print(f"{'ok     ' if finding.is_well else 'PROBLEM'}  {finding.text}")
    return 0 if all(finding.is_well for finding in found) else 1


def run_demo(arguments: argparse.Namespace) -> int:
    """`saescope demo`."""
    from app import demo
    from app.server import address, listen, serve, serving

    settings = _settings(arguments, host=arguments.host, port=arguments.port, device=arguments.device)
    with closing(listen(settings)) as socket:  # a busy port is said before minutes of work, not after
        store = open_store(settings)
        is_ready = demo.is_ready(store)
        store.close()
        if is_ready:
            serve(settings, socket=socket)
            return 0
        here = address(socket)
        demo.announce(settings.home)
        with serving(settings, socket=socket) as server:
            print(f"Watch it at {here}{demo.RUN_PATH}", flush=True)
            infos = train_and_add({demo.SLUG: demo.TRAINING}, settings=settings)
            if infos is None or not index_and_add(demo.INDEXING, settings=settings):
                return STOPPED
            print(f"The demo is ready: {here}/saes/{demo.SLUG}  (Ctrl-C stops it)", flush=True)
            if not map_if_missing(demo.SLUG, settings=settings):
                return STOPPED
            with stop_request() as stop:
                while server.is_alive() and not stop.was_made:
                    server.join(0.2)
    return STOPPED


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    description: str,
    examples: str | None = None,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    places = parser.add_argument_group("where things are kept")
    places.add_argument(
        "--home", type=Path, metavar="DIR", help="runs and database (SAESCOPE_HOME; ~/.local/share/saescope)"
    )
    places.add_argument(
        "--database",
        metavar="URL",
        help="the database, postgresql://… or sqlite:///… (SAESCOPE_DATABASE_URL; SQLite in the home)",
    )
    return parser


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how they are compared")
    group.add_argument("--eval-corpus", nargs="+", metavar="SOURCE", help="what they are measured on (--corpus)")
    group.add_argument(
        "--eval-tokens", type=count, default=100_000, metavar="N", help="measure on at most so many tokens (100k)"
    )
    group.add_argument("--json", action="store_true", help="print one JSON object per SAE instead of a table")


def _add_index(parser: argparse.ArgumentParser) -> None:
    add_index_arguments(parser)
    several = parser.add_argument_group("several processes")
    several.add_argument(
        "--merge",
        action="store_true",
        help="put together what the same command with --shard 1/N … N/N has gathered, and store it",
    )
    parser.set_defaults(run=run_index)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    how = add_measuring_arguments(parser)
    how.add_argument("--json", action="store_true", help="print one JSON object instead of a card")
    parser.set_defaults(run=run_eval)


def _add_db(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("check", "upgrade", "backup"), help="what to do")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a new one, for the backup")
    parser.set_defaults(run=run_db)


def _add_address(parser: argparse.ArgumentParser) -> None:
    address = parser.add_argument_group("where it listens")
    address.add_argument("--host", metavar="ADDRESS", help="network address (SAESCOPE_HOST; 127.0.0.1)")
    address.add_argument("--port", type=int, metavar="N", help="port (SAESCOPE_PORT; 8000)")
    add_device_argument(address)


def _settings(arguments: argparse.Namespace, **overrides: Any) -> Settings:
    home = arguments.home.expanduser().resolve() if arguments.home else None
    return Settings.from_env(home=home, database_url=arguments.database, **overrides)


def _opened(arguments: argparse.Namespace) -> "Store":
    return open_store(_settings(arguments))


if __name__ == "__main__":
    sys.exit(main())
