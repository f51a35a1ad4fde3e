"""How an SAE or a run came to be, in a form that can be run again: its command and its settings."""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from typing import Any

from sae_core.config import IndexConfig, TrainConfig
from sae_core.records import IndexInfo, SAEInfo
from sae_core.runs import Run

ALWAYS_SHOWN = ("model", "layer", "corpus", "d_sae", "k", "tokens", "seed")
NEVER_SHOWN = ("device", "checkpoint_seconds", "cache_activations")  # change nothing about the SAE
INDEX_TOKENS = 1_000_000  # what `saescope index` reads at most by itself


def train_command(sae: SAEInfo) -> str | None:
    """The command that makes this SAE again, or imports it; None where that is not known."""
    if sae.origin is not None:
        return _import_command(sae)
    if sae.config.get("basis"):
        return f"saescope basis {sae.config['basis_of']} --kind {sae.config['basis']} --k {sae.k}"
    if not sae.config.get("model") or not sae.config.get("corpus"):
        return None
    return _wrapped(["saescope", "train", *_options(sae.config, TrainConfig, always=ALWAYS_SHOWN)])


def _import_command(sae: SAEInfo) -> str:
    """All that was settled when it was imported is said, whether the files say it too or the user did."""
    words = ["saescope", "import", shlex.quote(sae.origin or "")]
    for name in ("format", "model", "layer", "hook", "context_size", "prepend_bos", "input_scale"):
        if sae.config.get(name) is not None:
            words += _option("bos" if name == "prepend_bos" else name, sae.config[name])
    if sae.config.get("target_hook"):
        layer, hook = re.findall(r"blocks\.(\d+)\.hook_(\w+)", sae.target_hook_name)[0]
        words += ["--target-layer", layer, "--target-hook", hook]
    if sae.config.get("dtype", "float32") != "float32":
        words += _option("dtype", sae.config["dtype"])
    return _wrapped([*words, "--slug", sae.slug])


def run_command(run: Run) -> str | None:
    """The command that goes on with a run that stopped, and makes one that has ended again; None if it is not known."""
    if not run.config.get("corpus"):
        return None
    if run.kind == "training":
        options = _options(run.config, TrainConfig, always=ALWAYS_SHOWN)
        return _wrapped(["saescope", "train", *options, "--slug", run.slug])
    part = ["--shard", run.shard] if run.shard else []
    options = _options(run.config, IndexConfig, always=("corpus",), never=("slug", *NEVER_SHOWN))
    return _wrapped(["saescope", "index", run.slug, *options, *part])


def index_command(index: IndexInfo) -> str:
    """The command that measures this index again."""
    corpus = index.corpus
    words = ["saescope", "index", index.slug, "--corpus", *map(shlex.quote, corpus.sources)]
    words += ["--name", shlex.quote(corpus.name), "--context-size", str(corpus.context_size)]
    words += ["--tokens", str(corpus.n_tokens)] if corpus.n_tokens > INDEX_TOKENS else []
    return _wrapped([*words, "--seed", str(index.seed)])


def settings_rows(config: Mapping[str, object]) -> list[tuple[str, str]]:
    """The saved configuration as name and value, for a table."""
    return [(name, _shown(value)) for name, value in config.items() if value is not None]


def _options(
    config: Mapping[str, Any],
    kind: type[TrainConfig] | type[IndexConfig],
    *,
    always: tuple[str, ...],
    never: tuple[str, ...] = NEVER_SHOWN,
) -> list[str]:
    """The options that make this configuration: those that are always said, and what differs from the defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    words = []
    for name in (*always, *(name for name in defaults if name not in (*always, *never))):
        value = config.get(name)
        if value is not None and (name in always or value != defaults[name]):
            words += _option("bos" if name == "prepend_bos" else name, value)
    return words


def _option(name: str, value: object) -> list[str]:
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [option if value else "--no-" + option[2:]]
    if isinstance(value, (list, tuple)):
        return [option, *(shlex.quote(str(part)) for part in value)]
    return [option, shlex.quote(str(value))]


def _wrapped(words: list[str]) -> str:
    """One command over several lines, an option a line."""
    lines, line = [], words[0]
    for word in words[1:]:
        if word.startswith("--") and len(line) + len(word) > 72:
            lines.append(line)
            line = "    " + word
        else:
            line += " " + word
    return " \\\n".join([*lines, line])


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
