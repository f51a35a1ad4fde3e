"""The `saescope` command: train, index, serve, and the demo that does all three.

Parses, makes one call and prints. The one place that maps errors to exit codes: 2 for what the user can put right in
the command, 1 for what went wrong around it, 130 for Ctrl-C.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.settings import Settings
from sae_core.disk import saving
from sae_core.errors import SaescopeError

if TYPE_CHECKING:
    from sae_core.config import IndexConfig, TrainConfig
    from sae_core.records import SAEInfo
    from sae_core.store import Store

STOPPED = 130

INTRODUCTION = """\
See what a language model has learned: train a sparse autoencoder (SAE) on its activations, find for every feature
the text that activates it most, and browse the result.

  saescope demo                                                 everything, on the small model that ships
  saescope train --model PATH_OR_HUB_ID --layer 6 --corpus 'texts/*.txt'
  saescope index SLUG --corpus 'texts/*.txt'
  saescope serve"""

TRAIN = """\
Train a TopK SAE on the activations of a language model.

The model is read from a folder, from the Hugging Face cache or from the hub. Training shows FVU (the share of variance
not explained), L0 (active features per token) and the share of dead features. Ctrl-C stops it after the current step;
the same command goes on from there. The result lands in HOME/runs/SLUG and in the database's list of SAEs."""

TRAIN_EXAMPLES = """\
examples:
  saescope train --model demo --layer 3 --corpus python-docs
  saescope train --model meta-llama/Llama-3.2-1B --layer 8 --dtype bfloat16 \\
      --corpus hub:HuggingFaceFW/fineweb-edu --d-sae 32768 --k 64 --tokens 100M
  saescope train --model ./my-model --layer 6 --hook mlp_out --corpus notes.jsonl --text-field body"""

INDEX = """\
Measure an SAE on a corpus: one pass of the model finds each feature's density, its top examples, samples of weaker
activations, the tokens it promotes and the features nearest to it. The database shows the index when it is complete.
Indexing the same SAE on a corpus of the same name again replaces the older index."""

SERVE = """\
Serve the dashboard. Pages answer at once; the model is loaded, in a process of its own, when a text is first probed."""

DEMO = """\
Train an SAE on the small language model that ships with saescope, index it on Python's own documentation and sources,
and serve the dashboard. What was done before is not done again, so a second call serves at once."""

CORPUS_HELP = (
    "where the text comes from: files, folders, 'globs', .jsonl and .parquet files (one document per row), "
    "hub:NAME[:CONFIG] for a hub data set (streamed), python-docs for this Python's own documentation and sources"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = make_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
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
    _add_train(_command(commands, "train", "train an SAE on a model's activations", TRAIN, TRAIN_EXAMPLES))
    _add_index(_command(commands, "index", "measure an SAE on a corpus and fill the dashboard", INDEX))
    serve = _command(commands, "serve", "serve the dashboard", SERVE)
    _add_address(serve)
    serve.set_defaults(run=run_serve)
    demo = _command(commands, "demo", "train, index and serve the demo", DEMO)
    _add_address(demo)
    demo.set_defaults(run=run_demo)
    return parser


def run_train(arguments: argparse.Namespace) -> int:
    """`saescope train`."""
    from sae_core.config import TrainConfig

    given = {name: value for name, value in vars(arguments).items() if name in TrainConfig.__dataclass_fields__}
    config = TrainConfig(**{**given, "corpus": tuple(arguments.corpus)})
    info = train_and_add(config, slug=arguments.slug, settings=_settings(arguments))
    if info is None:
        return STOPPED
    print(f"The SAE is ready. Next: saescope index {info.slug} --corpus {' '.join(arguments.corpus)}")
    return 0


def run_index(arguments: argparse.Namespace) -> int:
    """`saescope index`."""
    from sae_core.config import IndexConfig

    given = {name: value for name, value in vars(arguments).items() if name in IndexConfig.__dataclass_fields__}
    settings = _settings(arguments)
    if not index_and_add(IndexConfig(**{**given, "corpus": tuple(arguments.corpus)}), settings=settings):
        return STOPPED
    print(f"The index is ready. Next: saescope serve, then open /saes/{arguments.slug}")
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    """`saescope serve`."""
    from app.server import listen, serve

    settings = _settings(arguments, host=arguments.host, port=arguments.port, device=arguments.device)
    with closing(listen(settings)) as socket:
        _open_store(settings).close()
        serve(settings, socket=socket)
    return 0


def run_demo(arguments: argparse.Namespace) -> int:
    """`saescope demo`."""
    from app import demo
    from app.server import listen, serve

    settings = _settings(arguments, host=arguments.host, port=arguments.port, device=arguments.device)
    with closing(listen(settings)) as socket:  # a busy port is said before minutes of work, not after
        store = _open_store(settings)
        is_ready = demo.is_ready(store)
        store.close()
        if not is_ready:
            info = train_and_add(demo.TRAINING, slug=demo.SLUG, settings=settings)
            if info is None or not index_and_add(demo.INDEXING, settings=settings):
                return STOPPED
        serve(settings, socket=socket)
    return 0


def train_and_add(config: "TrainConfig", *, slug: str | None, settings: Settings) -> "SAEInfo | None":
    """Trains and enters the SAE in the database; None if it was stopped."""
    from sae_core.model import load_tokenizer
    from sae_core.tokens import vocabulary
    from sae_core.train import train

    store = _open_store(settings)
    info = train(config, runs=settings.home / "runs", slug=slug)
    if info is None:
        print("saescope: stopped; the same command goes on from here.", file=sys.stderr)
        return None
    store.add_sae(info, vocabulary(load_tokenizer(config.model)))
    store.close()
    return info


def index_and_add(config: "IndexConfig", *, settings: Settings) -> bool:
    """Indexes and enters the index in the database; False if it was stopped."""
    from sae_core.index import build_index

    store = _open_store(settings)
    records = build_index(store.sae(config.slug).sae, config, scratch=settings.home)
    if records is None:
        print("saescope: stopped; nothing was changed.", file=sys.stderr)
        return False
    store.add_index(records)
    store.close()
    metrics = records.info.metrics
    recovered = "" if metrics.ce_recovered is None else f"  CE recovered {metrics.ce_recovered:.3f}"
    print(
        f"{records.info.corpus.n_tokens:,} tokens in {records.info.seconds:.0f} s:  FVU {metrics.fvu:.3f}  "
        f"L0 {metrics.l0:.1f}  dead {metrics.dead_share:.1%}{recovered}"
    )
    return True


def count(text: str) -> int:
    """A number of things as people write it: 500000, 500_000, 500k, 10M, 1.5B."""
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?)([kKmMbB]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write 500000, 500k, 10M or 1B")
    factor = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}[match[2].lower()]
    return round(float(match[1].replace("_", "").replace(",", "")) * factor)


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


def _add_train(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is read")
    what.add_argument("--model", required=True, metavar="PATH_OR_HUB_ID", help="language model; 'demo' ships here")
    what.add_argument("--layer", type=int, required=True, metavar="N", help="block whose activations are read, 0 first")
    what.add_argument(
        "--hook",
        default="resid_post",
        metavar="POINT",
        help="resid_post (default), resid_pre, mlp_out or attn_out of that block",
    )
    _add_corpus(what)
    what.add_argument(
        "--context-size", type=count, default=128, metavar="N", help="tokens per context, BOS included (128)"
    )
    size = parser.add_argument_group("the SAE")
    size.add_argument("--d-sae", type=count, default=4096, metavar="N", help="number of features (4096)")
    size.add_argument("--k", type=count, default=32, metavar="N", help="active features per token (32)")
    size.add_argument("--slug", metavar="NAME", help="its name in URLs (from model, layer and width)")
    how = parser.add_argument_group("how it is trained")
    how.add_argument("--tokens", type=count, default=2_000_000, metavar="N", help="activations trained on, as 10M (2M)")
    how.add_argument("--batch-tokens", type=count, default=4096, metavar="N", help="activations per step (4096)")
    how.add_argument(
        "--buffer-tokens", type=count, default=262_144, metavar="N", help="activations held for shuffling (262144)"
    )
    how.add_argument(
        "--learning-rate", type=float, metavar="X", help="of Adam (3e-3 at 4096 features, falling with √width)"
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and shuffling (0)")
    how.add_argument("--dtype", default="float32", metavar="TYPE", help="of the model: float32, bfloat16 or float16")
    _add_device(how)
    parser.set_defaults(run=run_train)


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("slug", metavar="SLUG", help="the SAE, as `saescope train` named it")
    what = parser.add_argument_group("what is read")
    _add_corpus(what)
    what.add_argument("--name", metavar="NAME", help="what the corpus is called (from its sources)")
    what.add_argument(
        "--tokens", type=count, default=1_000_000, metavar="N", help="read at most so many tokens, as 10M (1M)"
    )
    what.add_argument(
        "--context-size", type=count, metavar="N", help="tokens per context, BOS included (as the SAE was trained)"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--batch-contexts", type=count, default=32, metavar="N", help="contexts per pass of the model (32)"
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples that are drawn (0)")
    _add_device(how)
    parser.set_defaults(run=run_index)


def _add_corpus(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--corpus", nargs="+", required=True, metavar="SOURCE", help=CORPUS_HELP)
    group.add_argument(
        "--text-field", default="text", metavar="NAME", help="column of .jsonl, .parquet and hub rows (text)"
    )
    group.add_argument(
        "--bos",
        dest="prepend_bos",
        action=argparse.BooleanOptionalAction,
        help="start every context with the BOS token, or not (as the tokenizer does by itself)",
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    address = parser.add_argument_group("where it listens")
    address.add_argument("--host", metavar="ADDRESS", help="network address (SAESCOPE_HOST; 127.0.0.1)")
    address.add_argument("--port", type=int, metavar="N", help="port (SAESCOPE_PORT; 8000)")
    _add_device(address)


def _add_device(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--device", metavar="NAME", help="cuda, cpu or mps (cuda if it is there)")


def _settings(arguments: argparse.Namespace, **overrides: Any) -> Settings:
    home = arguments.home.expanduser().resolve() if arguments.home else None
    return Settings.from_env(home=home, database_url=arguments.database, **overrides)


def _open_store(settings: Settings) -> "Store":
    from sae_core.store import Store

    with saving(settings.home):
        settings.home.mkdir(parents=True, exist_ok=True)
    return Store.open(settings.database_url)


if __name__ == "__main__":
    sys.exit(main())
