"""Memory of large matrices goes back to the system as soon as it is freed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["return_large_blocks"]

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
_LARGE = 4 << 20


def return_large_blocks() -> None:
    """Have the C library map blocks of 4 MB and more each for itself; does nothing where it is not glibc.

    Left alone, glibc raises its threshold to 32 MB once such blocks are freed and keeps what comes after on its heap,
    where freed matrices leave gaps: 60 to 75 MB of them in a merge of 2048 x 2048 matrices.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _LARGE)
