"""Kernels that look at each change of each expert, compiled by numba; each gives the bits of its namesake in
`changes_reference`. The rules of `compiled` hold here too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import LANES, elementary
from consilience.merging.kernels.changes_reference import SMOOTHING
from consilience.merging.kernels.jit import jit

__all__ = ["changed_mean", "count_changes", "deviation_mean", "row_divergence"]

Work = NDArray[Any]
Sums = NDArray[np.float64]

_TILE = 1024  # elements of a temporary; a few of them stay in the first-level cache
_LOG2E, _LN2, _LN2_HIGH, _LN2_LOW = elementary.LOG2E, elementary.LN2, elementary.LN2_HIGH, elementary.LN2_LOW
_ROUND, _LOWEST, _TWO_52_AND_BIAS = elementary.ROUND, elementary.LOWEST, elementary.TWO_52_AND_BIAS
_ROOT_HALF, _CENTRE, _FRACTION = elementary.ROOT_HALF, elementary.CENTRE, elementary.FRACTION
_TWO_52, _BIAS, _EXPONENT = elementary.TWO_52, elementary.BIAS, elementary.EXPONENT
_E11, _E10, _E9, _E8, _E7, _E6, _E5, _E4, _E3, _E2, _, _ = elementary.EXPONENTIAL
_L17, _L15, _L13, _L11, _L9, _L7, _L5, _L3, _ = elementary.LOGARITHM


@jit
def _count_changes(deltas: Any, epsilon: Any, out: Any) -> None:
    counts = np.empty(_TILE, np.int32)
    for first in range(0, deltas.shape[1], _TILE):
        count = counts[: min(_TILE, deltas.shape[1] - first)]
        count[:] = 0
        for i in range(deltas.shape[0]):
            row = deltas[i, first : first + _TILE]
            for j in range(count.size):
                count[j] += np.int32(1) if abs(row[j]) > epsilon else np.int32(0)
        for i in range(deltas.shape[0]):
            row = deltas[i, first : first + _TILE]
            alone, shared = np.int32(0), np.int32(0)
            for j in range(count.size):
                changed = abs(row[j]) > epsilon
                alone = np.int32(alone + (np.int32(1) if changed & (count[j] == 1) else np.int32(0)))
                shared = np.int32(shared + (np.int32(1) if changed & (count[j] > 1) else np.int32(0)))
            out[0, i] += alone
            out[1, i] += shared


def count_changes(deltas: Work, epsilon: float, out: NDArray[np.int64]) -> None:
    """Count the changes above epsilon that one expert has alone and those that it shares; see the reference."""
    _count_changes(deltas, deltas.dtype.type(epsilon), out)


@jit
def _changed_mean(deltas: Any, epsilon: Any, scales: Any, zero: Any, one: Any, out: Any) -> None:
    counts, lonely = np.empty(_TILE, out.dtype), np.empty(_TILE, out.dtype)
    for first in range(0, out.size, _TILE):
        part = out[first : first + _TILE]
        count, alone = counts[: part.size], lonely[: part.size]
        count[:] = zero
        alone[:] = zero
        part[:] = zero
        for i in range(deltas.shape[0]):
            row, scale = deltas[i, first : first + _TILE], scales[i]
            for j in range(part.size):
                count[j] += one if abs(row[j]) > epsilon else zero
            for j in range(part.size):
                part[j] += row[j] if abs(row[j]) > epsilon else zero
            for j in range(part.size):
                alone[j] += row[j] * scale if abs(row[j]) > epsilon else zero
        for j in range(part.size):
            mean = part[j] / max(count[j], one)
            part[j] = alone[j] if count[j] == one else mean


def changed_mean(deltas: Work, epsilon: float, scales: Work, out: Work) -> None:
    """Out = the mean of the changes above epsilon, one that is alone times its scale; see the reference."""
    number = out.dtype.type
    _changed_mean(deltas, number(epsilon), scales, number(0), number(1), out)


@jit
def _deviation_mean(deltas: Any, zero: Any, one: Any, out: Any) -> None:
    totals = np.empty(_TILE, out.dtype)
    for first in range(0, out.size, _TILE):
        part = out[first : first + _TILE]
        total = totals[: part.size]
        total[:] = zero
        part[:] = zero
        for i in range(deltas.shape[0]):
            row = deltas[i, first : first + _TILE]
            for j in range(part.size):
                total[j] += abs(row[j])
        for j in range(part.size):
            total[j] = total[j] if total[j] != zero else one
        for i in range(deltas.shape[0]):
            row = deltas[i, first : first + _TILE]
            for j in range(part.size):
                part[j] += row[j] * (abs(row[j]) / total[j])


@jit
def _inverse_deviation_mean(deltas: Any, zero: Any, one: Any, out: Any) -> None:
    totals = np.empty(_TILE, out.dtype)
    for first in range(0, out.size, _TILE):
        part = out[first : first + _TILE]
        total = totals[: part.size]
        total[:] = zero
        part[:] = zero
        for i in range(deltas.shape[0]):
            row = deltas[i, first : first + _TILE]
            for j in range(part.size):
                total[j] += one / abs(row[j])
                sign = one if row[j] > zero else -one
                part[j] += sign if row[j] != zero else zero
        for j in range(part.size):
            part[j] /= total[j]


def deviation_mean(deltas: Work, inverse: bool, out: Work) -> None:
    """Out = the mean of the changes, weighted by their magnitudes or the inverses of them; see the reference."""
    number = out.dtype.type
    (_inverse_deviation_mean if inverse else _deviation_mean)(deltas, number(0), number(1), out)


@jit
def _exp(x: Any) -> Any:
    """As `elementary.exponential`, for one number."""
    x = max(x, _LOWEST)
    shifted = x * _LOG2E + _ROUND
    whole = shifted - _ROUND
    t = x - whole * _LN2_HIGH - whole * _LN2_LOW
    r = (((((_E11 * t + _E10) * t + _E9) * t + _E8) * t + _E7) * t + _E6) * t + _E5
    r = (((((r * t + _E4) * t + _E3) * t + _E2) * t + 1.0) * t) + 1.0
    return r * np.uint64((np.float64(shifted).view(np.uint64) + _BIAS) << _EXPONENT).view(np.float64)


@jit
def _log(x: Any) -> Any:
    """As `elementary.logarithm`, for one number."""
    centred = np.uint64(np.float64(x).view(np.uint64) + _CENTRE)
    exponent = np.uint64((centred >> _EXPONENT) | _TWO_52).view(np.float64) - _TWO_52_AND_BIAS
    part = np.uint64((centred & _FRACTION) + _ROOT_HALF).view(np.float64) - 1.0
    s = part / (part + 2.0)
    z = s * s
    r = (((_L17 * z + _L15) * z + _L13) * z + _L11) * z + _L9
    r = (((r * z + _L7) * z + _L5) * z + _L3) * z + 1.0
    return exponent * _LN2 + (s + s) * r


@jit
def _total(values: Any, lanes: Any) -> float:
    lanes[:] = 0.0
    whole = values.size // LANES * LANES
    for first in range(0, whole, LANES):
        part = values[first : first + LANES]
        for lane in range(LANES):
            lanes[lane] += part[lane]
    rest = values[whole:]
    for lane in range(rest.size):
        lanes[lane] += rest[lane]
    total = lanes[0]
    for lane in range(1, LANES):
        total += lanes[lane]
    return total


@jit
def _softmax(row: Any, lanes: Any, out: Any) -> None:
    largest = row[0]
    for j in range(row.size):
        largest = max(largest, row[j])
    top = np.float64(largest)
    for j in range(row.size):
        out[j] = _exp(np.float64(row[j]) - top)
    share = 1.0 / _total(out, lanes)
    for j in range(row.size):
        out[j] = out[j] * share + SMOOTHING


@jit
def _row_divergence(a: Any, b: Any, row: int, out: Any) -> None:
    lanes = np.empty(LANES, np.float64)
    first, second = np.empty(row, np.float64), np.empty(row, np.float64)
    for r in range(out.size):
        _softmax(a[r * row : (r + 1) * row], lanes, first)
        _softmax(b[r * row : (r + 1) * row], lanes, second)
        for j in range(row):
            first[j] = second[j] * _log(second[j] / first[j])
        out[r] = _total(first, lanes)


def row_divergence(a: Work, b: Work, row: int, out: Sums) -> None:
    """out[r] = divergence of softmax(b) from softmax(a) over row r; see the reference."""
    assert a.size == b.size == out.size * row, "whole rows only: bounds are not checked below"
    _row_divergence(a, b, row, out)
