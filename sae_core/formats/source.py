"""One published SAE as it lies on disk: its weights file, the settings beside it, and what it holds by name and shape.

Nothing is executed: a pickle is read with `weights_only`, an .npz without pickles. What a file claims is compared with
its size and with the memory that is there before anything is read into memory.
"""

import json
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_core.errors import WeightsError
from sae_core.free_memory import free_bytes

# Weights files by their usual names, likeliest first, then whatever is alone in its folder.
_NAMES = (
    "sae_weights.safetensors", "sae.safetensors", "ae.pt", "params.npz", "params.safetensors",
    "checkpoints/final.safetensors", "final.safetensors",
)  # fmt: skip
_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
_NOT_WEIGHTS = ("sparsity.safetensors", "activations_store_state.safetensors", "trainer_state.pt", "extras.safetensors")
_CONFIG_NAMES = ("cfg.json", "config.json", "hyperparams.json", "sae.json")
_INNER_FOLDERS = ("checkpoints",)  # whose settings stand beside, not in them
_MOST_CONFIG_BYTES = 16 << 20
_DEPTH = 5
_SHOWN = 6

# What safetensors, torch, NumPy and zipfile raise for files that are cut short or hold something else.
_DAMAGE = (
    SafetensorError, zipfile.BadZipFile, pickle.UnpicklingError, OSError, ValueError, LookupError, EOFError,
    RuntimeError, TypeError, AttributeError, OverflowError, zlib.error,
)  # fmt: skip

Shape = tuple[int, ...]


class Source:
    """`values` are what the file holds that is no tensor, `shapes` the tensors' shapes by name."""

    def __init__(self, path: Path) -> None:
        """Finds the weights file of `path`, a file or a folder. Raises WeightsError if there is none, or several."""
        self.path = path
        self.weights = _weights_file(path)
        self.config_file, self.config = _settings(self.weights)

    @property
    def folder(self) -> Path:
        """The SAE's own folder: the one whose name says which it is."""
        return self.weights.parent.parent if self.weights.parent.name in _INNER_FOLDERS else self.weights.parent

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """All that a pickled file holds, by name; tensors stay on disk until they are used."""
        if self.weights.suffix not in (".pt", ".pth"):
            return {}
        loaded = _unpickled(self.weights)
        if isinstance(loaded, Mapping) and isinstance(loaded.get("ae"), Mapping):  # a trainer's whole state
            loaded = loaded["ae"]
        if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
            raise WeightsError(f"{self.weights} holds no named tensors; give the file that holds the SAE's state_dict.")
        return loaded

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Name and shape of every tensor. Raises WeightsError if the file is damaged or does not fit into memory."""
        with _read_errors(self.weights):
            if self.weights.suffix == ".safetensors":
                with safe_open(self.weights, framework="pt") as file:
                    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            elif self.weights.suffix == ".npz":
                shapes = dict(_npz_shapes(self.weights))
            else:
                shapes = {name: tuple(v.shape) for name, v in self.values.items() if isinstance(v, Tensor)}
        needed, free = 8 * sum(map(math.prod, shapes.values())), free_bytes(torch.device("cpu"))
        if free is not None and needed > free:
            raise WeightsError(
                f"{self.weights.name} would need {needed / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} GB are free; "
                "end other programs, or use a machine with more memory."
            )
        return shapes

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, on the CPU and in the types they are stored in. Raises WeightsError."""
        names = self.shapes
        with _read_errors(self.weights):
            if self.weights.suffix == ".safetensors":
                with safe_open(self.weights, framework="pt") as file:
                    found = {name: file.get_tensor(name) for name in names}
            elif self.weights.suffix == ".npz":
                with np.load(self.weights, allow_pickle=False) as file:
                    found = {name: torch.from_numpy(file[name]) for name in names}
            else:
                found = {name: self.values[name].detach() for name in names}
        for name, tensor in found.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise WeightsError(f"{name} in {self.weights} holds numbers that are not finite: the file is damaged.")
        return found


def _weights_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise WeightsError(f"{path} is no weights file; give a {', '.join(_SUFFIXES)} file or the SAE's folder.")
        return path
    if not path.is_dir():
        raise WeightsError(f"There is no file or folder {path}; check the path.")
    here = _weights_in(path)
    if here is not None:
        return here
    found = sorted(_below(path, _DEPTH))
    if len(found) == 1:
        return found[0]
    if not found:
        raise WeightsError(f"There are no SAE weights in {path}: no {', '.join(_SUFFIXES)} file.")
    names = list(dict.fromkeys(_named(file, path) for file in found))
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    raise WeightsError(f"{path} holds {len(names)} SAEs; give the path of one of them: {shown}.")


def _weights_in(folder: Path) -> Path | None:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    candidates = _candidates(folder)
    return candidates[0] if len(candidates) == 1 else None


def _candidates(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in _SUFFIXES and p.name not in _NOT_WEIGHTS]


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Weights files in this folder and those below it: of each folder the usual one, or all that it has."""
    one = _weights_in(folder)
    if one is not None:
        yield one
        return
    yield from _candidates(folder)
    if depth:
        for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()):
            yield from _below(inner, depth - 1)


def _named(file: Path, root: Path) -> str:
    """The folder of a weights file below `root`, or the file where its folder has several."""
    folder = file.parent.parent if file.parent.name in _INNER_FOLDERS else file.parent
    return str((folder if folder != root and _weights_in(folder) else file).relative_to(root))


def _settings(weights: Path) -> tuple[Path | None, dict[str, Any]]:
    """The JSON file beside the weights and what it says; {} if there is none."""
    folders = [weights.parent, *([weights.parent.parent] if weights.parent.name in _INNER_FOLDERS else [])]
    for path in (folder / name for folder in folders for name in _CONFIG_NAMES):
        if path.is_file():
            try:
                if path.stat().st_size > _MOST_CONFIG_BYTES:
                    raise ValueError("too large")
                config = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise WeightsError(f"{path} is damaged or no JSON ({error}); fetch it again.") from error
            if not isinstance(config, dict):
                raise WeightsError(f"{path} holds no settings (a JSON object); fetch it again.")
            return path, config
    return None, {}


def _unpickled(path: Path) -> Any:
    """What `torch.save` wrote, if it is nothing but tensors and plain values."""
    with _read_errors(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # whose checksums torch does not look at
                damaged = archive.testzip()
            if damaged is not None:
                raise WeightsError(f"{path} is damaged ({damaged}); fetch it again.")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return torch.load(path, map_location="cpu", weights_only=True)


def _npz_shapes(path: Path) -> Iterator[tuple[str, Shape]]:
    readers: dict[tuple[int, int], Callable[[Any], tuple[Shape, bool, np.dtype[Any]]]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            with archive.open(item) as file:
                shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
            if dtype.hasobject:
                raise WeightsError(f"{item.filename} in {path} is a pickle, which can run programs; it is not read.")
            if item.file_size < math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{item.filename} is cut short")
            yield item.filename.removesuffix(".npy"), shape


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Turns what damaged and foreign files raise into WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except _DAMAGE as error:
        if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower():
            raise WeightsError(
                f"{path} is a pickle that holds more than tensors and plain values, and reading that could run "
                f"programs ({_first_line(error)}); save its state_dict alone with torch.save, and import that."
            ) from error
        raise WeightsError(
            f"{path} is damaged, cut short or no weights file ({_first_line(error)}); fetch it again."
        ) from error


def _first_line(error: BaseException) -> str:
    for line in str(error).splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return line.strip()[:160]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
