"""Kernels of rows, bands of magnitude and votes compiled by numba; each gives the bits of its namesake in
`rows_reference`. The rules of `compiled` hold here too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import LANES
from consilience.merging.kernels.jit import jit
from consilience.merging.kernels.rows_drawn import draw_rows

__all__ = [
    "column_dots",
    "elected_mean",
    "magnitude_band",
    "rank_rows",
    "ranked_draw",
    "ranked_keep",
    "row_band",
    "row_dots",
    "row_norms",
    "spread",
]

Work = NDArray[Any]
Sums = NDArray[np.float64]

_TILE = 1024  # elements of a temporary; a few of them stay in the first-level cache
_M1 = np.uint32(0x7FEB352D)
_M2 = np.uint32(0x846CA68B)
_GOLDEN = np.uint32(0x9E3779B9)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_NO_LIMIT = np.uint32(0xFFFFFFFF)
_DIGIT = 11  # bits sorted at a time; three digits hold a magnitude
_DIGITS = 3
_BINS = 1 << _DIGIT
_FEW = 64  # rows up to this length are sorted by insertion


def _bits(values: Work) -> NDArray[np.uint32]:
    """Return the float32 patterns of values."""
    return values.astype(np.float32, copy=False).view(np.uint32)


@jit
def _insert(bits: Any, keys: Any, order: Any) -> None:
    size = bits.size
    for step in range(size):
        index = size - 1 - step
        key = np.uint32(bits[index] & _MAGNITUDE)
        place = step
        while place > 0 and keys[place - 1] > key:
            keys[place] = keys[place - 1]
            order[place] = order[place - 1]
            place -= 1
        keys[place] = key
        order[place] = index


@jit
def _sort_row(bits: Any, keys: Any, order: Any, spare_keys: Any, spare_order: Any, counts: Any) -> Any:
    """Return the magnitudes of a row from small to large and where they were; of equals the highest index first."""
    size = bits.size
    if size <= _FEW:
        _insert(bits, keys, order)
        return keys, order
    counts[:] = 0
    for step in range(size):
        index = size - 1 - step
        key = np.uint32(bits[index] & _MAGNITUDE)
        keys[step] = key
        order[step] = index
        for digit in range(_DIGITS):
            counts[digit, (key >> (digit * _DIGIT)) & (_BINS - 1)] += 1
    for digit in range(_DIGITS):
        places = counts[digit]
        shift = digit * _DIGIT
        if places[(keys[0] >> shift) & (_BINS - 1)] == size:
            continue
        total = 0
        for place in range(_BINS):
            count = places[place]
            places[place] = total
            total += count
        for step in range(size):
            key = keys[step]
            bin_ = (key >> shift) & (_BINS - 1)
            place = places[bin_]
            places[bin_] = place + 1
            spare_keys[place] = key
            spare_order[place] = order[step]
        keys, spare_keys = spare_keys, keys
        order, spare_order = spare_order, order
    return keys, order


@jit
def _rank_rows(bits: Any, row: int, out: Any) -> None:
    keys, spare_keys = np.empty(row, np.uint32), np.empty(row, np.uint32)
    order, spare_order = np.empty(row, np.uint32), np.empty(row, np.uint32)
    counts = np.empty((_DIGITS, _BINS), np.int64)
    for first in range(0, bits.size, row):
        _, found = _sort_row(bits[first : first + row], keys, order, spare_keys, spare_order, counts)
        ranks = out[first : first + row]
        for place in range(row):
            ranks[found[place]] = place


def rank_rows(values: Work, row: int, out: NDArray[np.uint32]) -> None:
    """Out = the rank of each element's magnitude in its row, 0 the smallest; of equals the lowest index is highest."""
    assert values.size == out.size and values.size % row == 0, "whole rows only: bounds are not checked below"
    _rank_rows(_bits(values), row, out)


@jit
def _mix(x: Any) -> Any:
    x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
    x = np.uint32(x * _M1)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(15)))
    x = np.uint32(x * _M2)
    return np.uint32(x ^ np.uint32(x >> np.uint32(16)))


@jit
def _ranked_keep(ranks: Any, thresholds: Any, low_key: Any, high_key: Any, start: int, out: Any) -> None:
    done = 0
    while done < out.size:
        first = start + done
        low = first & 0xFFFFFFFF
        fold = np.uint32(np.uint32(first >> 32) * _GOLDEN)
        part = out[done : done + min(out.size - done, 0x100000000 - low)]
        chosen = ranks[done : done + part.size]
        index = np.uint32(low)
        for j in range(part.size):
            x = np.uint32(_mix(np.uint32(np.uint32(index + np.uint32(j)) ^ low_key)) ^ high_key)
            part[j] = np.uint64(_mix(np.uint32(x + fold))) < thresholds[chosen[j]]
        done += part.size


def ranked_keep(
    ranks: NDArray[np.uint32], thresholds: NDArray[np.uint64], key: int, start: int, out: NDArray[np.bool_]
) -> None:
    """Out[j] = whether draw start + j of the stream is below the threshold (of 2**32) of its rank."""
    _ranked_keep(ranks, thresholds, np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32), start, out)


def _grow_evenly(thresholds: NDArray[np.uint64]) -> bool:
    """Whether thresholds are those of a straight line, rounded, and far enough apart for draws in float32."""
    numbers = thresholds.astype(np.float64)
    step = (numbers[-1] - numbers[0]) / max(len(numbers) - 1, 1)
    line = numbers[0] + step * np.arange(len(numbers))
    return bool(step > 4096 and np.abs(numbers - line).max() <= 1)


def ranked_draw(
    values: Work, row: int, thresholds: NDArray[np.uint64], key: int, start: int, out: NDArray[np.bool_]
) -> None:
    """Out[j] = whether draw start + j of the stream is below the threshold (of 2**32) of its rank in its row."""
    assert values.size == out.size and values.size % row == 0, "whole rows only: bounds are not checked below"
    bits, left = _bits(values), np.ones(values.size // row, np.bool_)
    if _grow_evenly(thresholds[:row]):
        low_key, high_key = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
        draw_rows(bits, row, thresholds, low_key, high_key, start, out.view(np.uint8), left)
    ranks = np.empty(row, np.uint32)
    for r in np.flatnonzero(left).tolist():
        first, last = r * row, (r + 1) * row
        _rank_rows(bits[first:last], row, ranks)
        ranked_keep(ranks, thresholds, key, start + first, out[first:last])


@jit
def _band(deltas: Any, bits: Any, high: Any, high_quota: int, low: Any, low_quota: int, zero: Any) -> Any:
    cut = np.empty(_TILE, deltas.dtype)
    high_used, low_used = np.int64(0), np.int64(0)
    for first in range(0, bits.size, _TILE):
        part, keys = deltas[first : first + _TILE], bits[first : first + _TILE]
        at_high, at_low = np.uint32(0), np.uint32(0)
        for j in range(part.size):
            key = np.uint32(keys[j] & _MAGNITUDE)
            at_high = np.uint32(at_high + (np.uint32(1) if key == high else np.uint32(0)))
            at_low = np.uint32(at_low + (np.uint32(1) if key == low else np.uint32(0)))
        if high == low:
            at_high = np.uint32(0)
        whole_high, whole_low = high_used + at_high <= high_quota, low_used + at_low <= low_quota
        most = high if (whole_high and high > low) or high == low else np.uint32(max(high, np.uint32(1)) - np.uint32(1))
        least = low if whole_low and high >= low else np.uint32(low + np.uint32(1))
        some_high = at_high > 0 and not whole_high and high_used < high_quota
        some_low = at_low > 0 and not whole_low and low_used < low_quota
        for j in range(part.size):
            key = np.uint32(keys[j] & _MAGNITUDE)
            cut[j] = part[j] if (least <= key) & (key <= most) else zero
        if some_high or some_low or high < low:  # of those that equal a limit the first ones stay
            for j in range(part.size):
                key = np.uint32(keys[j] & _MAGNITUDE)
                if key == low:
                    cut[j] = part[j] if low_used < low_quota else zero
                    low_used += low_used < low_quota
                elif key == high:
                    cut[j] = part[j] if high_used < high_quota else zero
                    high_used += high_used < high_quota
        else:
            high_used += np.int64(at_high) if whole_high else np.int64(0)
            low_used += np.int64(at_low) if whole_low else np.int64(0)
        for j in range(part.size):
            part[j] = cut[j]
    return high_used, low_used


def magnitude_band(deltas: Work, high: int, high_quota: int, low: int, low_quota: int) -> tuple[int, int]:
    """Zero, in place, what is not in a band of magnitude; return the quotas used; see the reference."""
    limits = np.uint32(high), high_quota, np.uint32(low), low_quota
    # for float32 the patterns are a view of what is written, element by element after it was read
    used = _band(deltas, _bits(deltas), *limits, deltas.dtype.type(0))
    return int(used[0]), int(used[1])


@jit
def _row_band(deltas: Any, bits: Any, row: int, top: int, keep: int, zero: Any) -> None:
    keys, spare_keys = np.empty(row, np.uint32), np.empty(row, np.uint32)
    order, spare_order = np.empty(row, np.uint32), np.empty(row, np.uint32)
    counts = np.empty((_DIGITS, _BINS), np.int64)
    last = min(top + keep, row)
    for first in range(0, deltas.size, row):
        part = deltas[first : first + row]
        if keep <= 0 or top >= row:
            part[:] = zero
            continue
        found, _ = _sort_row(bits[first : first + row], keys, order, spare_keys, spare_order, counts)
        high, high_quota = _NO_LIMIT, 0
        if top > 0:
            high = found[row - top]
            high_quota = -top
            for place in range(row):
                high_quota += 1 if found[place] >= high else 0
        low = found[row - last]
        low_quota = keep
        if low != high:
            low_quota = last
            for place in range(row):
                low_quota -= 1 if found[place] > low else 0
        _band(part, bits[first : first + row], high, high_quota, low, low_quota, zero)


def row_band(deltas: Work, row: int, top: int, keep: int) -> None:
    """Zero, in place, the `top` largest magnitudes of each row and all but the `keep` largest of the rest."""
    assert deltas.size % row == 0, "whole rows only: bounds are not checked below"
    _row_band(deltas, _bits(deltas), row, top, keep, deltas.dtype.type(0))


@jit
def _total(lanes: Any, count: int) -> float:
    total = lanes[0]
    for lane in range(1, count):
        total += lanes[lane]
    return total


@jit
def _row_dots(a: Any, b: Any, row: int, out: Any) -> None:
    lanes = np.empty(LANES, np.float64)
    for r in range(out.size):
        lanes[:] = 0.0
        last = (r + 1) * row
        for first in range(r * row, last, LANES):
            left, right = a[first : min(first + LANES, last)], b[first : min(first + LANES, last)]
            for lane in range(left.size):
                lanes[lane] += np.float64(left[lane]) * np.float64(right[lane])
        out[r] = _total(lanes, min(row, LANES))


def row_dots(a: Work, b: Work, row: int, out: Sums) -> None:
    """out[r] = float64 dot product of row r of a and b."""
    assert a.size == b.size == out.size * row, "whole rows only: bounds are not checked below"
    _row_dots(a, b, row, out)


@jit
def _row_norms(a: Any, row: int, out: Any) -> None:
    lanes = np.empty(LANES, np.float64)
    for r in range(out.size):
        lanes[:] = 0.0
        last = (r + 1) * row
        for first in range(r * row, last, LANES):
            part = a[first : min(first + LANES, last)]
            for lane in range(part.size):
                lanes[lane] += abs(np.float64(part[lane]))
        out[r] = _total(lanes, min(row, LANES))


def row_norms(a: Work, row: int, out: Sums) -> None:
    """out[r] = float64 sum of magnitudes of row r."""
    assert a.size == out.size * row, "whole rows only: bounds are not checked below"
    _row_norms(a, row, out)


@jit
def column_dots(a: Any, b: Any, first: int, out: Any) -> None:
    """Add products to the columns they belong to, in order: out[(first + j) % columns] += a[j] * b[j] in float64."""
    column = first % out.size
    done = 0
    while done < a.size:
        count = min(out.size - column, a.size - done)
        left, right, part = a[done : done + count], b[done : done + count], out[column : column + count]
        for j in range(count):
            part[j] += np.float64(left[j]) * np.float64(right[j])
        done += count
        column = 0


@jit
def spread(deltas: Any, out: Any) -> None:
    """Out = standard deviation across experts of each element; exactly 0 where all are equal."""
    means, totals = np.empty(_TILE, np.float64), np.empty(_TILE, np.float64)
    share = 1.0 / np.float64(deltas.shape[0])  # divisions are slow
    for first in range(0, out.size, _TILE):
        part = out[first : first + _TILE]
        origin = deltas[0, first : first + _TILE]
        mean, total = means[: part.size], totals[: part.size]
        mean[:] = 0.0
        for i in range(1, deltas.shape[0]):
            row = deltas[i, first : first + _TILE]
            for j in range(part.size):
                mean[j] += np.float64(row[j]) - np.float64(origin[j])
        for j in range(part.size):
            mean[j] *= share
            total[j] = mean[j] * mean[j]
        for i in range(1, deltas.shape[0]):
            row = deltas[i, first : first + _TILE]
            for j in range(part.size):
                away = np.float64(row[j]) - np.float64(origin[j]) - mean[j]
                total[j] += away * away
        for j in range(part.size):
            part[j] = np.sqrt(total[j] * share)


@jit
def _elected_mean(deltas: Any, weights: Any, floor: Any, zero: Any, one: Any, out: Any) -> None:
    votes, shares = np.empty(_TILE, out.dtype), np.empty(_TILE, out.dtype)
    for first in range(0, out.size, _TILE):
        part = out[first : first + _TILE]
        vote, share = votes[: part.size], shares[: part.size]
        vote[:] = zero
        share[:] = zero
        part[:] = zero
        for i in range(deltas.shape[0]):
            row = deltas[i, first : first + _TILE]
            for j in range(part.size):
                vote[j] += row[j]
        for j in range(part.size):
            vote[j] = one if vote[j] >= zero else -one
        for i in range(deltas.shape[0]):
            row = deltas[i, first : first + _TILE]
            weight = weights[i]
            for j in range(part.size):
                agrees = row[j] * vote[j] > zero
                part[j] += row[j] * weight if agrees else zero
                share[j] += weight if agrees else zero
        for j in range(part.size):
            divisor = max(share[j], floor)
            part[j] /= divisor if divisor != zero else one


def elected_mean(deltas: Work, weights: Work, floor: float, out: Work) -> None:
    """Elect the sign of the plain sum and average by weight the deltas that have it; see the reference."""
    number = out.dtype.type
    _elected_mean(deltas, weights, number(floor), number(0), number(1), out)
