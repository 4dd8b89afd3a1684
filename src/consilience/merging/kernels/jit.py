"""How kernels are compiled: released from the interpreter lock, no reassociation, cached on disk where that works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

__all__ = ["jit"]

_OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def jit(function: Callable[..., Any]) -> Any:
    """Compile a kernel at its first call, or load what an earlier process compiled.

    The cache is beside the module, else in the user's cache folder; without a writable place each process compiles.
    """
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba finds no place for its cache
        return njit(**_OPTIONS)(function)
