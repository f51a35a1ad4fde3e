"""Writes an SAE as another tool's files: a new folder, all or nothing."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sae_core.disk import saving
from sae_core.errors import ConfigError
from sae_core.formats import FORMATS
from sae_core.formats.importing import EXTRAS_FILE, IMPORT_FILE
from sae_core.records import SAEInfo
from sae_core.sae import SAE, load_sae


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """An SAE on its way out, and what it was where it came from, if that is the same format."""

    sae: SAE
    info: SAEInfo
    original_config: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)


def export_sae(info: SAEInfo, format: str, folder: Path) -> tuple[str, ...]:
    """Writes the SAE into `folder`, which must be new or empty. Returns what the reader should know.

    Raises WeightsError if it is damaged, and ConfigError if the format cannot hold it.
    """
    write = FORMATS[format].write if format in FORMATS else None
    if write is None:
        known = ", ".join(name for name, known in FORMATS.items() if known.write)
        raise ConfigError(f"Weights are not written as {format}: choose one of {known}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty; name another --output.")
    outgoing = _outgoing(info, format)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    with saving(folder):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            notes = write(outgoing, new)
            new.replace(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return notes


def _outgoing(info: SAEInfo, format: str) -> Outgoing:
    home = Path(info.weights_path)
    sae = load_sae(home)
    if info.config.get("format") != format:
        return Outgoing(sae=sae, info=info)
    try:
        original = json.loads((home / IMPORT_FILE).read_text(encoding="utf-8"))["original_config"]
        extras = load_file(home / EXTRAS_FILE) if (home / EXTRAS_FILE).exists() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return Outgoing(sae=sae, info=info)
    return Outgoing(sae=sae, info=info, original_config=original, extras=extras)
