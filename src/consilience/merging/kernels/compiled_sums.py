"""Compiled kernels of random draws and of sums over blocks; part of `compiled`, whose rules hold here too.

Kernels call only kernels of their own file: numba's cache notices a change of the file, not of one it imports.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import BLOCK, LANES
from consilience.merging.kernels.jit import jit

__all__ = ["block_dots", "block_norms", "random_block_norms", "random_drop"]

Work = NDArray[Any]

_TILE = 1024  # elements of a temporary; a few of them stay in the first-level cache
_M1 = np.uint32(0x7FEB352D)
_M2 = np.uint32(0x846CA68B)
_GOLDEN = np.uint32(0x9E3779B9)


@jit
def _mix(x: Any) -> Any:
    x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
    x = np.uint32(x * _M1)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(15)))
    x = np.uint32(x * _M2)
    return np.uint32(x ^ np.uint32(x >> np.uint32(16)))


@jit
def _draw(index: Any, low_key: Any, high_key: Any, fold: Any) -> Any:
    return _mix(np.uint32(np.uint32(_mix(np.uint32(index ^ low_key)) ^ high_key) + fold))


@jit
def _random_drop(deltas: Any, low_key: Any, high_key: Any, start: int, threshold: Any, scale: Any, zero: Any) -> None:
    done = 0
    while done < deltas.size:
        low = (start + done) & 0xFFFFFFFF
        fold = np.uint32(np.uint32((start + done) >> 32) * _GOLDEN)
        part = deltas[done : done + min(deltas.size - done, 0x100000000 - low)]
        index = np.uint32(low)
        for j in range(part.size):
            value = part[j] * scale
            part[j] = value if _draw(index, low_key, high_key, fold) < threshold else zero
            index = np.uint32(index + np.uint32(1))
        done += part.size


@jit
def _random_select(values: Any, low_key: Any, high_key: Any, start: int, threshold: Any, zero: Any, out: Any) -> None:
    done = 0
    while done < values.size:
        low = (start + done) & 0xFFFFFFFF
        fold = np.uint32(np.uint32((start + done) >> 32) * _GOLDEN)
        last = done + min(values.size - done, 0x100000000 - low)
        part, chosen = values[done:last], out[done:last]
        index = np.uint32(low)
        for j in range(part.size):
            value = part[j]
            chosen[j] = value if _draw(index, low_key, high_key, fold) < threshold else zero
            index = np.uint32(index + np.uint32(1))
        done = last


def random_drop(deltas: Work, key: int, start: int, threshold: int, scale: float) -> None:
    """Zero entry j, in place, unless draw start + j of the stream is below the threshold (of 2**32); scale the rest."""
    number = deltas.dtype.type
    if threshold >= 1 << 32:
        deltas *= number(scale)
        return
    low_key, high_key = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    _random_drop(deltas, low_key, high_key, start, np.uint32(threshold), number(scale), number(0))


@jit
def _total(lanes: Any) -> float:
    total = lanes[0]
    for lane in range(1, LANES):
        total += lanes[lane]
    return total


@jit
def block_dots(a: Any, b: Any, out: Any) -> None:
    """out[j] = float64 dot product of block j of a and b."""
    lanes = np.empty(LANES, np.float64)
    for block in range(out.size):
        lanes[:] = 0.0
        last = min((block + 1) * BLOCK, a.size)
        for first in range(block * BLOCK, last, LANES):
            left, right = a[first : min(first + LANES, last)], b[first : min(first + LANES, last)]
            for lane in range(left.size):
                lanes[lane] += np.float64(left[lane]) * np.float64(right[lane])
        out[block] = _total(lanes)


@jit
def _add_norms(part: Any, lanes: Any) -> None:
    """Add the magnitudes of part to the running sums, lane by lane."""
    whole = part.size // LANES * LANES
    for first in range(0, whole, LANES):
        row = part[first : first + LANES]
        for lane in range(LANES):
            lanes[lane] += abs(np.float64(row[lane]))
    rest = part[whole:]
    for lane in range(rest.size):
        lanes[lane] += abs(np.float64(rest[lane]))


@jit
def block_norms(a: Any, out: Any) -> None:
    """out[j] = float64 sum of magnitudes of block j."""
    lanes = np.empty(LANES, np.float64)
    for block in range(out.size):
        lanes[:] = 0.0
        _add_norms(a[block * BLOCK : (block + 1) * BLOCK], lanes)
        out[block] = _total(lanes)


@jit
def _random_block_norms(
    a: Any, low_key: Any, high_key: Any, start: int, threshold: Any, zero: Any, whole: Any, kept: Any
) -> None:
    chosen = np.empty(_TILE, a.dtype)
    lanes, kept_lanes = np.empty(LANES, np.float64), np.empty(LANES, np.float64)
    for block in range(whole.size):
        lanes[:] = 0.0
        kept_lanes[:] = 0.0
        last = min((block + 1) * BLOCK, a.size)
        for first in range(block * BLOCK, last, _TILE):
            part = a[first : min(first + _TILE, last)]
            some = chosen[: part.size]
            _random_select(part, low_key, high_key, start + first, threshold, zero, some)
            _add_norms(part, lanes)
            _add_norms(some, kept_lanes)
        whole[block] = _total(lanes)
        kept[block] = _total(kept_lanes)


def random_block_norms(
    a: Work, key: int, start: int, threshold: int, whole: NDArray[np.float64], kept: NDArray[np.float64]
) -> None:
    """Sums of magnitudes per block, of all elements and of those a random mask keeps."""
    if threshold >= 1 << 32:
        block_norms(a, whole)
        kept[:] = whole
        return
    low_key, high_key = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    _random_block_norms(a, low_key, high_key, start, np.uint32(threshold), a.dtype.type(0), whole, kept)
