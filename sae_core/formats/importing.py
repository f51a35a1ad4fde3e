"""Brings an SAE from elsewhere into the home: `imports/{slug}`, as our own weights, with all that is known of it.

1. Find the files (`source`), on this machine or on the hub (`hub`), and their format (`recognised`).
2. Read them as an SAE of ours (`foreign`).
3. Settle where it reads: what the user says, else what the files declare; check both against the model.
4. Write `imports/{slug}`: all or nothing. The source is never touched.

    sae.safetensors, sae.json    the SAE (`sae`)
    import.json                  where it is from, its format, its digest, what was folded, its settings as they were
    extras.safetensors           tensors that have no place in our classes, for an export to give back
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sae_core.config import DTYPES, HOOKS, check_slug
from sae_core.digests import file_sha256
from sae_core.disk import saving
from sae_core.errors import ConfigError, WeightsError
from sae_core.formats import hook_points, read_source
from sae_core.formats.foreign import ForeignSAE
from sae_core.formats.source import Source
from sae_core.loading import load_outline
from sae_core.model import LanguageModel
from sae_core.records import ModelInfo, SAEInfo

IMPORT_FILE = "import.json"
EXTRAS_FILE = "extras.safetensors"
_CONTEXT_SIZE = 128  # where nothing is declared


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """What is imported, and what the user says of it; None leaves it to the files."""

    path: Path
    origin: str  # what the user named: the path, or an address on the hub
    model: str
    format: str | None = None
    layer: int | None = None
    hook: str | None = None
    target_layer: int | None = None
    target_hook: str | None = None
    slug: str | None = None
    input_scale: float | None = None  # the SAE was trained on model_acts times this
    dtype: str = "float32"  # of the model
    context_size: int | None = None
    prepend_bos: bool | None = None
    replaces: bool = False  # an import of the same name and other settings

    def __post_init__(self) -> None:
        for name in (self.hook, self.target_hook):
            if name is not None and name not in HOOKS:
                raise ConfigError(f"hook {name!r} is not known: choose one of {', '.join(HOOKS)}.")
        for layer in (self.layer, self.target_layer):
            if layer is not None and layer < 0:
                raise ConfigError(f"layer is {layer}: blocks are numbered from 0.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is not known: choose one of {', '.join(DTYPES)}.")
        if self.input_scale is not None and not 0 < self.input_scale < float("inf"):
            raise ConfigError(f"input_scale is {self.input_scale}: give a number above 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came of an import."""

    info: SAEInfo
    format: str
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    l0: float | None  # as declared


def import_sae(
    config: ImportConfig, *, home: Path, check_name: Callable[[SAEInfo], None] = lambda info: None
) -> Imported:
    """Imports one SAE; the same again changes nothing. `check_name` raises, before anything is written, if the name is
    taken elsewhere. Raises WeightsError, ConfigError and ModelError.
    """
    source = Source(config.path)
    format, foreign = read_source(source, config.format)
    foreign = _with_input_scale(foreign, config.input_scale)
    hook_name = _hook_name(foreign, config)
    notes = foreign.notes
    if foreign.hook_name not in (None, hook_name):
        notes += (f"The files declare {foreign.hook_name}; it reads at {hook_name}, as you say.",)
    target = _target_hook_name(foreign, config)
    foreign = dataclasses.replace(foreign, hook_name=hook_name, target_hook_name=target, notes=notes)
    outline = load_outline(config.model, dtype=config.dtype)
    _check_model(foreign, outline)
    slug = check_slug(config.slug or _slug(source, format.name, foreign, config))
    info = _info(source, format.name, foreign, config, outline.info, slug, home=home)
    check_name(info)
    folder = Path(info.weights_path)
    if not _is_there(folder, info, replaces=config.replaces):
        _write(folder, source, foreign, info)
    return Imported(info=info, format=format.name, notes=foreign.notes, doubts=foreign.doubts, l0=foreign.l0)


def _with_input_scale(foreign: ForeignSAE, scale: float | None) -> ForeignSAE:
    """With the factor folded in that its training multiplied activations by."""
    if scale is None:
        return foreign
    if foreign.sae.input_norm != "none":
        raise ConfigError("--input-scale is for SAEs whose input had one factor; this one normalises every token.")
    foreign.sae.fold_scale_keeping_activations(scale)
    note = f"The input scale {scale:g} was folded into the weights."
    doubts = tuple(doubt for doubt in foreign.doubts if "--input-scale" not in doubt)
    return dataclasses.replace(foreign, notes=(*foreign.notes, note), doubts=doubts)


def _hook_name(foreign: ForeignSAE, config: ImportConfig) -> str:
    layer, hook = hook_points.split(foreign.hook_name) if foreign.hook_name else (None, None)
    layer = layer if config.layer is None else config.layer
    hook = config.hook or hook
    if hook is None and foreign.declared_hook:
        raise ConfigError(
            f"The SAE reads at {foreign.declared_hook!r}, which is no hook point of saescope; if it means one, say "
            f"which with --layer and --hook ({', '.join(HOOKS)})."
        )
    if layer is None:
        raise ConfigError(
            "The files do not say which layer the SAE reads: give --layer N (and --hook if not resid_post)."
        )
    return f"blocks.{layer}.hook_{hook or 'resid_post'}"


def _target_hook_name(foreign: ForeignSAE, config: ImportConfig) -> str | None:
    if not foreign.sae.is_transcoder:
        if config.target_hook is None:
            return None
        if foreign.sae.encoder_bias is not None or foreign.sae.input_norm != "none":
            raise ConfigError("--target-hook is for transcoders; this is an SAE, which predicts what it reads.")
        foreign.sae.is_transcoder = True  # whose files look like an SAE's
    layer, hook = hook_points.split(foreign.target_hook_name) if foreign.target_hook_name else (None, None)
    if config.layer is not None and foreign.hook_name and layer is not None:  # the user moved it
        layer += config.layer - hook_points.split(foreign.hook_name)[0]
    layer = layer if config.target_layer is None else config.target_layer
    layer = config.layer if layer is None else layer
    hook = config.target_hook or hook
    if hook is None or layer is None:
        raise ConfigError("This is a transcoder: say with --target-hook (and --target-layer) what it predicts.")
    return f"blocks.{layer}.hook_{hook}"


def _check_model(foreign: ForeignSAE, model: LanguageModel) -> None:
    """Raises ConfigError where the model has no such hook point, WeightsError where its vectors have another width."""
    read_at, name = str(foreign.hook_name), model.info.model_name
    if foreign.sae.d_in != (width := model.width(read_at)):
        declared = f" It was trained on {foreign.model_name}." if foreign.model_name else ""
        place = f" at {read_at}" if width != model.info.d_model else ""
        raise WeightsError(
            f"The SAE reads {foreign.sae.d_in} numbers a token and {name} gives {width}{place}: "
            f"give the model it was trained on.{declared}"
        )
    if foreign.sae.d_out != (width := model.width(foreign.target_hook_name or read_at)):
        raise WeightsError(f"The transcoder gives {foreign.sae.d_out} numbers a token, the model has {width}.")


def _slug(source: Source, format: str, foreign: ForeignSAE, config: ImportConfig) -> str:
    """Model, hook, format and width: `gpt2-l8-resid_pre-saelens-24576`."""
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(config.model).name.lower()).strip("-._") or "model"
    layer, hook = hook_points.split(str(foreign.hook_name))
    part = "" if hook == "resid_post" else f"-{hook}"
    target = f"-to-{hook_points.split(foreign.target_hook_name)[1]}" if foreign.target_hook_name else ""
    return f"{name[:40]}-l{layer}{part}{target}-{format}-{foreign.sae.d_sae}"


def _info(
    source: Source, format: str, foreign: ForeignSAE, config: ImportConfig, model: ModelInfo, slug: str, *, home: Path
) -> SAEInfo:
    sae = foreign.sae
    layer, hook = hook_points.split(str(foreign.hook_name))
    settings = {
        "model": config.model,
        "layer": layer,
        "hook": hook,
        "target_hook": foreign.target_hook_name,
        "architecture": sae.architecture,
        "d_sae": sae.d_sae,
        "k": foreign.k,
        "dtype": config.dtype,
        "context_size": config.context_size or foreign.context_size or _CONTEXT_SIZE,
        "prepend_bos": config.prepend_bos if config.prepend_bos is not None else foreign.prepend_bos,
        "imported_from": config.origin,
        "format": format,
        "sha256": file_sha256(source.weights),
        "weights_dtype": foreign.dtype,
        "trained_on": foreign.model_name,
        "declared_l0": foreign.l0,
        "input_scale": config.input_scale,
        "subtracts_b_dec": sae.encoder_bias is not None,
        "input_norm": None if sae.input_norm == "none" else sae.input_norm,
        "skip_connection": True if sae.W_skip is not None else None,
    }
    return SAEInfo(
        slug=slug,
        model=model,
        hook_name=str(foreign.hook_name),
        layer=layer,
        architecture=sae.architecture,
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        k=foreign.k,
        n_training_tokens=0,
        weights_path=str(home / "imports" / slug),
        created_at=datetime.now(UTC),
        config={name: value for name, value in settings.items() if value is not None},
    )


def _is_there(folder: Path, info: SAEInfo, *, replaces: bool) -> bool:
    """Whether this very import is there. Raises ConfigError if another is, unless this one `replaces` it."""
    try:
        known = json.loads((folder / IMPORT_FILE).read_text(encoding="utf-8"))["settings"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    differing = [name for name in {**known, **info.config} if known.get(name) != info.config.get(name)]
    differing = [name for name in differing if name != "imported_from"]  # the same file may have moved
    if differing and not replaces:
        raise ConfigError(
            f"The import {info.slug} exists with another {', '.join(sorted(differing))}; give this one another --slug, "
            "or --replace, which drops that one with its indexes and labels."
        )
    return not differing


def _write(folder: Path, source: Source, foreign: ForeignSAE, info: SAEInfo) -> None:
    """Writes the folder beside its place and moves it there."""
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    said: dict[str, Any] = {
        "settings": dict(info.config),
        "notes": foreign.notes,
        "weights_file": source.weights.name,
        "config_file": source.config_file.name if source.config_file else None,
        "original_config": source.config,
    }
    with saving(folder.parent):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            foreign.sae.save(new)
            if foreign.extras:
                save_file({name: tensor.contiguous() for name, tensor in foreign.extras.items()}, new / EXTRAS_FILE)
            (new / IMPORT_FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # of no import that is whole
            new.replace(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
