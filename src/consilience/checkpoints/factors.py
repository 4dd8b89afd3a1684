"""Decoded low-rank factors, kept for the threads that read pieces of the same tensor."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.checkpoints.files import file_identity

if TYPE_CHECKING:
    from consilience.checkpoints.sources import Stored

__all__ = ["factors"]

_MAX_PAIRS = 32
_MAX_BYTES = 64 << 20

Pair = tuple[NDArray[Any], NDArray[Any]]


class _Cache:
    """Least recently used pairs, bounded by count and bytes."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.lock = threading.Lock()
        self.pairs: OrderedDict[Any, Pair] = OrderedDict()
        self.bytes = 0

    def get(self, key: Any) -> Pair | None:
        with self.lock:
            pair = self.pairs.get(key)
            if pair is not None:
                self.pairs.move_to_end(key)
            return pair

    def put(self, key: Any, pair: Pair) -> None:
        with self.lock:
            if key in self.pairs:
                return
            self.pairs[key] = pair
            self.bytes += _size(pair)
            while len(self.pairs) > 1 and (len(self.pairs) > _MAX_PAIRS or self.bytes > _MAX_BYTES):
                self.bytes -= _size(self.pairs.popitem(last=False)[1])


def _size(pair: Pair) -> int:
    return pair[0].nbytes + pair[1].nbytes


_CACHE = _Cache()
os.register_at_fork(after_in_child=_CACHE.clear)


def factors(a: Stored, b: Stored, transposed: bool, dtype: type[Any]) -> Pair:
    """Return (left, right) with W's change = left @ right: B and A, or their transposes in the other order.

    `a` (rank, in...) and `b` (out, rank, 1...) are decoded to `dtype`; left is (rows, rank), right (rank, columns),
    contiguous along what an inner loop walks, and read-only because threads share them.
    """
    key = (a, b, transposed, dtype, file_identity(a.path), file_identity(b.path))
    pair = _CACHE.get(key)
    if pair is None:
        rank = a.shape[0]
        down = _decoded(a, dtype).reshape(rank, -1)
        up = _decoded(b, dtype).reshape(-1, rank)
        left, right = (down.T, up.T) if transposed else (up, down)
        pair = np.ascontiguousarray(left), np.ascontiguousarray(right)
        for array in pair:
            array.flags.writeable = False
        _CACHE.put(key, pair)
    return pair


def _decoded(stored: Stored, dtype: type[Any]) -> NDArray[Any]:
    values = np.empty(stored.numel, dtype)
    stored.read(0, stored.numel, values)
    return values
