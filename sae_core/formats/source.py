"""One published SAE as it lies on disk: its weights file, the settings beside it, and what it holds by name and shape.

Nothing is executed: a pickle is read with `weights_only`, an .npz without pickles. What a file claims is compared with
its size and with the memory that is there before anything is read into memory.
"""

import json
import math
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
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
_SMALL_NAMES = ("activation_scaler.json",)  # which a reader may look for
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
        return Path(_own_folder(PurePosixPath(self.weights)))

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


def weights_among(names: Sequence[str]) -> list[str]:
    """Of files' names the weights of SAEs: of each folder the usual one, or all that look like weights, sorted."""
    by_folder: dict[str, list[PurePosixPath]] = {}
    for path in map(PurePosixPath, sorted(names)):
        if path.suffix in _SUFFIXES and path.name not in _NOT_WEIGHTS:
            by_folder.setdefault(str(_own_folder(path)), []).append(path)
    found = []
    for folder, paths in by_folder.items():
        usual = [path for name in _NAMES for path in paths if path == PurePosixPath(folder) / name]
        found += usual[:1] or paths
    return [str(path) for path in found]


def settings_beside(weights: str, names: Collection[str]) -> list[str]:
    """Of files' names those of the settings that may belong to a weights file."""
    folders = dict.fromkeys((PurePosixPath(weights).parent, _own_folder(PurePosixPath(weights))))
    beside = [str(folder / name) for folder in folders for name in (*_CONFIG_NAMES, *_SMALL_NAMES)]
    return [name for name in beside if name in names]


def _own_folder(path: PurePosixPath) -> PurePosixPath:
    """The folder that is the SAE's: above `checkpoints`."""
    return path.parent.parent if path.parent.name in _INNER_FOLDERS else path.parent


def _weights_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise WeightsError(f"{path} is no weights file; give a {', '.join(_SUFFIXES)} file or the SAE's folder.")
        return path
    if not path.is_dir():
        raise WeightsError(f"There is no file or folder {path}; check the path.")
    found = weights_among([file.relative_to(path).as_posix() for file in _files(path, _DEPTH)])
    here = [name for name in found if _own_folder(PurePosixPath(name)) == PurePosixPath()]
    found = here if len(here) == 1 else found
    if len(found) == 1:
        return path / found[0]
    if not found:
        raise WeightsError(f"There are no SAE weights in {path}: no {', '.join(_SUFFIXES)} file.")
    folders = list(dict.fromkeys(str(_own_folder(PurePosixPath(name))) for name in found))
    names = folders if len(folders) == len(found) else found
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    raise WeightsError(f"{path} holds {len(names)} SAEs; give the path of one of them: {shown}.")


def _files(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield path
        elif depth and path.is_dir() and not path.is_symlink():
            yield from _files(path, depth - 1)


def _settings(weights: Path) -> tuple[Path | None, dict[str, Any]]:
    """The JSON file beside the weights and what it says; {} if there is none."""
    folders = dict.fromkeys((weights.parent, Path(_own_folder(PurePosixPath(weights)))))
    for path in (folder / name for folder in folders for name in _CONFIG_NAMES):
        if path.is_file():
            try:
                if path.stat().st_size > _MOST_CONFIG_BYTES:
                    raise ValueError("too large")
                config = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise WeightsError(f"{path} is damaged or no JSON ({_first_line(error)}); fetch it again.") from error
            if not isinstance(config, dict):
                raise WeightsError(f"{path} holds no settings (a JSON object); fetch it again.")
            return path, config
    return None, {}


def _unpickled(path: Path) -> Any:
    """What `torch.save` wrote, if it is nothing but tensors and plain values."""
    with _read_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that are refused anyway
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
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted:
        return f"it asks for {wanted[1]}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
