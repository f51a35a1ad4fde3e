"""Loops compiled to machine code by Numba, which is imported with the first of them."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F, *, fastmath: bool | set[str] = False) -> _F:
    """Machine code of `function`, which lets go of Python's lock; kept on disk where there is a place for it."""
    options = {"nogil": True, "boundscheck": False, "fastmath": fastmath}
    try:
        return cast(_F, njit(cache=True, **options)(function))
    except RuntimeError:  # no folder that Numba may write to
        return cast(_F, njit(**options)(function))
