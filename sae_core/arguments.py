"""The options of training and indexing, and the configurations that they mean: for `saescope` and for torchrun."""

import argparse
import itertools
import re
from collections.abc import Callable
from typing import Any

from sae_core.config import ARCHITECTURES, HOOKS, IndexConfig, TrainConfig
from sae_core.errors import ConfigError

SWEPT = ("layer", "architecture", "d_sae", "k", "seed")  # may be lists in a sweep: each combination is an SAE

CORPUS_HELP = (
    "where the text comes from: files, folders, 'globs', .jsonl and .parquet files (one document per row), "
    "hub:NAME[:CONFIG] for a hub data set (streamed), python-docs for this Python's own documentation and sources"
)


def count(text: str) -> int:
    """A number of things as people write it: 500000, 500_000, 500k, 10M, 1.5B."""
    match = re.fullmatch(r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?)([kKmMbB]?)", text.strip())
    if match is None:
        several = "; several are separated by blanks" if "," in text else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; write 500000, 500k, 10M or 1B{several}")
    factor = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}[match[2].lower()]
    return round(float(match[1].replace("_", "").replace(",", "")) * factor)


def add_train_arguments(parser: argparse.ArgumentParser, *, sweeps: bool = False) -> None:
    """All options of a `TrainConfig`, and --slug. With `sweeps` those in `SWEPT` take several values."""

    def add_swept(group: "argparse._ArgumentGroup", name: str, kind: Callable[[str], Any], said: str, **options: Any):  # type: ignore[no-untyped-def]
        if sweeps:
            options |= {"nargs": "+"}
            if "default" in options:
                options["default"] = [options["default"]]
        group.add_argument(name, type=kind, help=said, **options)

    what = parser.add_argument_group("what is read")
    what.add_argument("--model", required=True, metavar="PATH_OR_HUB_ID", help="language model; 'demo' ships here")
    add_swept(what, "--layer", int, "block whose activations are read, 0 first", required=True, metavar="N")
    what.add_argument(
        "--hook", default="resid_post", metavar="POINT", help=f"where in that block: {', '.join(HOOKS)} (resid_post)"
    )
    what.add_argument("--target-hook", metavar="POINT", help="train a transcoder, which predicts this hook point")
    what.add_argument("--target-layer", type=int, metavar="N", help="block of the target (the same)")
    add_corpus_arguments(what)
    what.add_argument(
        "--context-size", type=count, default=128, metavar="N", help="tokens per context, BOS included (128)"
    )
    size = parser.add_argument_group("the SAE")
    add_swept(size, "--architecture", str, f"one of {', '.join(ARCHITECTURES)} (topk)", default="topk", metavar="NAME")
    add_swept(size, "--d-sae", count, "number of features (4096)", default=4096, metavar="N")
    add_swept(size, "--k", count, "active features per token: exactly, or aimed at (32)", default=32, metavar="N")
    size.add_argument("--slug", metavar="NAME", help="its name in URLs (from model, layer, architecture and width)")
    how = parser.add_argument_group("how it is trained")
    how.add_argument("--tokens", type=count, default=2_000_000, metavar="N", help="activations trained on, as 10M (2M)")
    how.add_argument("--batch-tokens", type=count, default=4096, metavar="N", help="activations per step (4096)")
    how.add_argument(
        "--buffer-tokens", type=count, default=262_144, metavar="N", help="activations held for shuffling (262144)"
    )
    how.add_argument(
        "--learning-rate", type=float, metavar="X", help="of Adam (4.8e-3 at 4096 features, falling with √width)"
    )
    add_swept(how, "--seed", int, "of the weights (0)", default=0, metavar="N")
    how.add_argument("--data-seed", type=int, default=0, metavar="N", help="of the order of the text (0)")
    how.add_argument(
        "--dtype", default="float32", metavar="TYPE", help="of the model: float32, bfloat16, float16, int8, int4"
    )
    how.add_argument(
        "--cache-activations",
        action="store_true",
        help="keep the activations on disk (HOME/activations), so that the next SAE on them needs no model",
    )
    add_device_argument(how)
    _add_finer(parser.add_argument_group("finer settings"))


def add_measuring_arguments(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """What `index` and `eval` ask alike; returns the group that says how."""
    parser.add_argument("slug", metavar="SLUG", help="the SAE, as `saescope train` named it")
    what = parser.add_argument_group("what is read")
    add_corpus_arguments(what)
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
    add_device_argument(how)
    return how


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of an `IndexConfig`, and --shard."""
    defaults = {name: field.default for name, field in IndexConfig.__dataclass_fields__.items()}
    how = add_measuring_arguments(parser)
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples that are drawn (0)")
    how.add_argument(
        "--shard", metavar="I/N", help="gather only the I-th of N equal parts of the text, for a later --merge"
    )
    kept = parser.add_argument_group("what is kept of each feature")
    for name, said in (
        ("top_examples", "contexts with different text on which it is strongest"),
        ("band_examples", "firings drawn from each of the five bands of activation"),
        ("random_examples", "firings drawn from all"),
        ("promoted_tokens", "promoted and suppressed tokens"),
        ("nearest_features", "features with the nearest decoder directions"),
    ):
        default = defaults[name]
        option = f"--{name.replace('_', '-')}"
        kept.add_argument(option, type=count, default=default, metavar="N", help=f"{said} ({default})")
    finer = parser.add_argument_group("finer settings")
    finer.add_argument(
        "--dense-threshold", type=float, default=0.1, metavar="X", help="density above which it counts as dense (0.1)"
    )
    finer.add_argument(
        "--checkpoint-seconds", type=float, default=60.0, metavar="X", help="wall time between checkpoints (60)"
    )


def index_config(arguments: argparse.Namespace) -> IndexConfig:
    """What these options mean. Raises ConfigError."""
    given = {name: value for name, value in vars(arguments).items() if name in IndexConfig.__dataclass_fields__}
    return IndexConfig(**{**given, "corpus": tuple(arguments.corpus)})


def _add_finer(group: "argparse._ArgumentGroup") -> None:
    defaults = {name: field.default for name, field in TrainConfig.__dataclass_fields__.items()}

    def add(name: str, kind: Callable[[str], Any], metavar: str, said: str) -> None:
        option = "--" + name.replace("_", "-")
        group.add_argument(option, type=kind, metavar=metavar, default=defaults[name], help=said)

    add("warmup_share", float, "X", "share of the steps over which the learning rate rises (0.05)")
    add("beta2", float, "X", "of Adam: the share of its second moment that is kept from step to step (0.99)")
    add("decay_share", float, "X", "share of the steps over which it falls to zero at the end (0.55)")
    add("bias_lift", float, "X", "raise a dead feature's bias by so many learning rates a step, until it fires (20)")
    add("aux_coefficient", float, "X", "weight of the auxiliary loss AuxK, which revives dead features too (0)")
    add("dead_after_tokens", count, "N", "tokens without firing until a feature counts as dead (a 64th of --tokens)")
    group.add_argument("--multi-topk", action="store_true", help="topk: let 4k features reconstruct too, weight 1/8")
    add("sparsity", float, "X", "weight of the L1 or L0 term (relu, gated: steered to --k; jumprelu: 1)")
    add("sparsity_warmup_share", float, "X", "share of the steps over which that term rises (0.1)")
    add("checkpoint_seconds", float, "S", "time between checkpoints (60)")


def add_corpus_arguments(group: "argparse._ArgumentGroup") -> None:
    """--corpus and how its text is read."""
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


def add_device_argument(group: "argparse._ArgumentGroup") -> None:
    """--device."""
    group.add_argument(
        "--device", metavar="NAME", help="cuda, cpu or mps (cuda if it is there); auto: a model larger than the GPU"
    )


def train_config(arguments: argparse.Namespace) -> TrainConfig:
    """The configuration that the options of one SAE mean."""
    given = {name: value for name, value in vars(arguments).items() if name in TrainConfig.__dataclass_fields__}
    return TrainConfig(**{**given, "corpus": tuple(arguments.corpus)})


def sweep_configs(arguments: argparse.Namespace, *, named: Callable[[TrainConfig], str]) -> dict[str, TrainConfig]:
    """A configuration for each combination of the swept options, by slug: the base name and whatever varies.

    `named` gives the base name where --slug does not. Raises ConfigError if a value stands twice.
    """
    lists = {name: getattr(arguments, name) for name in SWEPT}
    for name, values in lists.items():
        if len(set(values)) < len(values):
            raise ConfigError(f"--{name.replace('_', '-')} names a value twice; give each once.")
    varying = [name for name in SWEPT if len(lists[name]) > 1]
    first = train_config(argparse.Namespace(**{**vars(arguments), **{name: v[0] for name, v in lists.items()}}))
    base = arguments.slug or named(first)
    for name in () if arguments.slug else varying:  # what varies stands behind the name, not in it
        base = base.replace({"layer": f"-l{first.layer}", "d_sae": f"-{first.d_sae}"}.get(name, "\0"), "", 1)
        base = base.replace(f"-{first.architecture}", "", 1) if name == "architecture" else base
    configs = {}
    for values in itertools.product(*(lists[name] for name in SWEPT)):
        chosen = dict(zip(SWEPT, values, strict=True))
        config = train_config(argparse.Namespace(**{**vars(arguments), **chosen}))
        configs["-".join([base, *(_named_value(name, chosen[name]) for name in varying)])] = config
    return configs


def _named_value(name: str, value: object) -> str:
    return {"layer": f"l{value}", "d_sae": f"{value}", "k": f"k{value}", "seed": f"s{value}"}.get(name, str(value))
