"""Reads inputs of a merge into working precision: reused memory, input hashes, the check for NaN and infinity."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import decode
from consilience.checkpoints.sources import Source, Stored
from consilience.merging.kernels import kernels

__all__ = ["BUFFERS", "Loader"]


class _Buffers(threading.local):
    """Memory for one chunk of every input, kept by each thread from tensor to tensor: fresh pages cost time."""

    def __init__(self) -> None:
        self.kept: dict[str, NDArray[np.uint8]] = {}

    def array(self, role: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array of undefined content; the one of the same role before is overwritten."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if role not in self.kept or self.kept[role].size < size:
            self.kept[role] = np.empty(size, np.uint8)
        array: NDArray[Any] = self.kept[role][:size].view(dtype).reshape(shape)
        return array


BUFFERS = _Buffers()


class Loader:
    """Decodes one source piece by piece, hashing the stored bytes on the way."""

    def __init__(self, source: Source, hasher: Any, *, check: bool) -> None:
        self.source = source
        self.hasher = hasher
        self.check = check

    def load(self, start: int, stop: int, out: NDArray[Any], base: NDArray[Any] | None = None) -> bool:
        """Write elements to `out`, minus `base` where given; return whether all are finite (True unless asked)."""
        source = self.source
        if isinstance(source, Stored) and source.dtype == "BF16":
            raw = BUFFERS.array("stored", (stop - start,), np.uint16)
            source.read_raw_into(start, stop, raw)
            if self.hasher is not None:
                self.hasher.update(raw)
            if base is not None:
                return bool(kernels().decode_difference(raw, base, out))
            return bool(kernels().decode_bfloat16(raw, out))
        if isinstance(source, Stored) and self.hasher is not None:
            raw = source.read_raw(start, stop)
            self.hasher.update(raw)
            decode(raw, source.dtype, out)
        else:
            source.read(start, stop, out)
        finite = not self.check or bool(kernels().all_finite(out))
        if base is not None:
            kernels().subtract_base(out[None], base)
        return finite
