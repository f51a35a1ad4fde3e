"""A virtual environment for every peer, below `.cache/bench/`, made when a benchmark first asks for it.

A peer's own requirements must not replace the PyTorch that saescope runs on, or two PyTorch builds would be compared:
the build is installed first, and a constraints file holds it while pip resolves the rest.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench"
TORCH_INDEX = "https://download.pytorch.org/whl"
INSTALL_SECONDS = 1800


class EnvironmentFailed(Exception):
    """A peer's environment could not be made; the message says why, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to install for one peer."""

    name: str  # of the folder below the cache
    requirement: str  # pinned; several are divided by blanks
    uninstall: tuple[str, ...] = ()  # afterwards: what stands in the way of importing the peer


def python_of(recipe: Recipe, *, cache: Path = CACHE) -> Path:
    """The Python of the recipe's environment, which is made if it is not there or was made by another recipe.

    Raises EnvironmentFailed with the reason; what pip said is in `install.log` in the environment's folder.
    """
    folder = cache / recipe.name
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = f"{recipe} torch=={torch_version()} {sys.version_info[:3]} {folder}\n"
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return python
    print(f"installing {recipe.requirement} into {folder} (minutes, once)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (folder / "install.log").open("w") as log:
        _run([sys.executable, "-m", "venv", str(folder)], log)
        _install(python, folder, recipe, log)
    stamp.write_text(wanted)
    return python


def torch_version() -> str:
    """The PyTorch build that saescope itself runs on, with its local part: `2.13.0+cpu`."""
    return importlib.metadata.version("torch")


def _install(python: Path, folder: Path, recipe: Recipe, log: TextIO) -> None:
    torch = f"torch=={torch_version()}"
    constraints = folder / "constraints.txt"
    constraints.write_text(torch + "\n")
    pip = [str(python), "-m", "pip", "--no-input", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-compile", "--prefer-binary"]
    # The build's own index is asked for this package alone, with short patience: a folder of wheels may have it too.
    index = ["--retries", "1", "--timeout", "10", "--extra-index-url", f"{TORCH_INDEX}/{torch.partition('+')[2]}"]
    _run([*install, *(index if "+" in torch else []), torch], log)
    _run([*install, "--constraint", str(constraints), *recipe.requirement.split()], log)
    if recipe.uninstall:
        _run([*pip, "uninstall", "--yes", *recipe.uninstall], log)


def _run(command: list[str], log: TextIO) -> None:
    log.write("$ " + " ".join(command) + "\n")
    log.flush()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFailed(f"{' '.join(command[1:4])} took more than {INSTALL_SECONDS} s") from error
    if done.returncode:
        raise EnvironmentFailed(_last_error(Path(log.name).read_text()))


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip said nothing"])[-1].removeprefix("ERROR:").strip()
