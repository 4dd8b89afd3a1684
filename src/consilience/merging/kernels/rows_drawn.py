"""The compiled draw whose probability follows the rank in a row, without ranking; part of `rows_compiled`.

Kernels call only kernels of their own file: numba's cache notices a change of the file, not of one it imports.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from consilience.merging.kernels.jit import jit

__all__ = ["draw_rows"]

_M1 = np.uint32(0x7FEB352D)
_M2 = np.uint32(0x846CA68B)
_GOLDEN = np.uint32(0x9E3779B9)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SMALLEST = np.uint32(0x0D800000)  # 2**-100: divisions by what is smaller could overflow
_INFINITE = np.uint32(0x7F800000)
_MANY = 8  # a row is left to sorting where more than one entry in so many is in doubt


@jit
def _mix(x: Any) -> Any:
    x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
    x = np.uint32(x * _M1)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(15)))
    x = np.uint32(x * _M2)
    return np.uint32(x ^ np.uint32(x >> np.uint32(16)))


@jit
def _draw(low_key: Any, high_key: Any, start: int, out: Any) -> None:
    done = 0
    while done < out.size:
        low = (start + done) & 0xFFFFFFFF
        fold = np.uint32(np.uint32((start + done) >> 32) * _GOLDEN)
        part = out[done : done + min(out.size - done, 0x100000000 - low)]
        index = np.uint32(low)
        for j in range(part.size):
            x = np.uint32(_mix(np.uint32(np.uint32(index + np.uint32(j)) ^ low_key)) ^ high_key)
            part[j] = _mix(np.uint32(x + fold))
        done += part.size


@jit
def _largest(bits: Any) -> Any:
    largest = np.uint32(0)
    for j in range(bits.size):
        largest = max(largest, np.uint32(bits[j] & _MAGNITUDE))
    return np.uint32(largest)


@jit
def _bin(values: Any, bins: Any, scale: Any, last: Any) -> None:
    """Give each entry a bin that grows with its magnitude."""
    for j in range(values.size):
        bins[j] = np.uint32(min(np.int32(abs(values[j]) * scale), last))


@jit
def _rank(bits: Any, index: int) -> Any:
    """Return the rank of one magnitude in its row; of equals the lowest index is highest."""
    key = np.uint32(bits[index] & _MAGNITUDE)
    below = np.uint32(0)
    for j in range(index + 1):
        below = np.uint32(below + (np.uint32(1) if np.uint32(bits[j] & _MAGNITUDE) < key else np.uint32(0)))
    rest = bits[index + 1 :]
    for j in range(rest.size):
        below = np.uint32(below + (np.uint32(1) if np.uint32(rest[j] & _MAGNITUDE) <= key else np.uint32(0)))
    return np.int64(below)


@jit
def _below(draws: Any, lowest: Any, steps: Any, least: Any, most: Any, out: Any) -> None:
    """Out = one more than the place of each draw among the evenly growing thresholds, rounded down, exact to 1."""
    for j in range(draws.size):
        place = (np.float32(draws[j]) - lowest) * steps
        out[j] = np.int32(min(max(place, least), most) - least) - np.int32(3)


@jit
def _decide(bins: Any, starts: Any, below: Any, out: Any) -> None:
    """Out = 1 where all ranks of an entry's bin are above its draw, 0 where all are below, 2 where that is unsure."""
    for j in range(bins.size):
        place = np.uint64(bins[j])
        passed = below[j]
        stays = starts[place] > passed
        unsure = starts[place + np.uint64(1)] > np.int32(passed - np.int32(1))
        out[j] = (np.uint8(2) if unsure else np.uint8(0)) if not stays else np.uint8(1)


@jit
def draw_rows(
    bits: Any, row: int, thresholds: Any, low_key: Any, high_key: Any, start: int, keep: Any, left: Any
) -> None:
    """Say which entries stay (1 or 0), row by row; `left` says which rows are left undone. Thresholds grow evenly.

    An entry's bin bounds its rank, and the bounds decide all but a few draws; the ranks of those are counted.
    """
    size = 256
    while size < row and size < 4096:
        size *= 2
    size //= 2
    bins, draws, below = np.empty(row, np.uint32), np.empty(row, np.uint32), np.empty(row, np.int32)
    starts = np.empty(size + 1, np.int32)
    values = bits.view(np.float32)
    lowest = np.float32(thresholds[0])
    steps = np.float32(np.float64(row - 1) / (np.float64(thresholds[row - 1]) - np.float64(thresholds[0])))
    for r in range(left.size):
        first = r * row
        keys, part = bits[first : first + row], keep[first : first + row]
        largest = _largest(keys)
        left[r] = not _SMALLEST < largest < _INFINITE
        if left[r]:
            continue
        scale = np.float32(np.float32(size) / np.uint32(largest).view(np.float32))
        _bin(values[first : first + row], bins, scale, np.int32(size - 1))
        starts[:] = 0
        for j in range(row):
            starts[np.uint64(bins[j]) + np.uint64(1)] += 1
        for b in range(size):
            starts[b + 1] += starts[b]
        _draw(low_key, high_key, start + first, draws)
        _below(draws, lowest, steps, np.float32(-4), np.float32(row + 4), below)
        _decide(bins, starts, below, part)
        doubts = 0
        for j in range(row):
            doubts += part[j] >> 1
        left[r] = doubts * _MANY > row
        if left[r]:
            continue
        for j in range(row):
            if part[j] == 2:
                part[j] = np.uint64(draws[j]) < thresholds[_rank(keys, j)]
