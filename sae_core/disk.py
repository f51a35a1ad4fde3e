"""Writing to disk: a full or read-only disk becomes one sentence, and what was there before stays."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sae_core.errors import ConfigError, DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NEARLY_FULL_BYTES = 1 << 20


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turns failures to write below `folder` into DiskFullError or ConfigError.

    torch and safetensors report a full disk as errors of their own; then the disk itself is asked.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(folder) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise ConfigError(f"{folder} cannot be written to; choose another folder with --home.") from error
        raise
    except (RuntimeError, SafetensorError) as error:
        if "No space left" in str(error) or _free_bytes(folder) < _NEARLY_FULL_BYTES:
            raise _full(folder) from error
        raise


def _full(folder: Path) -> DiskFullError:
    return DiskFullError(
        f"The disk of {folder} is full; make room and run the same command again, it goes on from there."
    )


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `folder` when all is written; nothing stays of one that failed.

    Raises ConfigError if there is something at that place already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty; name another --output.")
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    with saving(folder):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            yield new
            new.replace(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
