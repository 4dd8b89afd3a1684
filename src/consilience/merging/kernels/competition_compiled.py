"""Kernels of parameter competition, compiled by numba; each gives the bits of its namesake in `competition_reference`.

The rules of `compiled` hold here too. The exponential stands here once more because numba's cache on disk notices
changes in this file only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import elementary
from consilience.merging.kernels.competition_reference import LEAST_SHARE, SERIES, TANH
from consilience.merging.kernels.jit import jit

__all__ = ["balanced_sum", "coefficients", "competition_scores"]

Work = NDArray[Any]
Sums = NDArray[np.float64]

_TILE = 1024  # elements of a temporary; a few of them stay in the first-level cache
_LOG2E, _LN2_HIGH, _LN2_LOW = elementary.LOG2E, elementary.LN2_HIGH, elementary.LN2_LOW
_ROUND, _LOWEST, _BIAS, _EXPONENT = elementary.ROUND, elementary.LOWEST, elementary.BIAS, elementary.EXPONENT
_E11, _E10, _E9, _E8, _E7, _E6, _E5, _E4, _E3, _E2, _, _ = elementary.EXPONENTIAL
_T13, _T11, _T9, _T7, _T5, _T3 = TANH


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
def _tanh(x: Any) -> Any:
    z = x * x
    r = ((((_T13 * z + _T11) * z + _T9) * z + _T7) * z + _T5) * z + _T3
    size = abs(x)
    decay = _exp(size * -2.0)
    far = (1.0 - decay) / (1.0 + decay)
    far = far if x >= 0.0 else -far
    return x + x * (r * z) if size < SERIES else far


@jit
def _place(x: Any, low: Any, high: Any, span: Any) -> Any:
    return (min(max(abs(x), low), high) - low) / span if high > low else 1.0


@jit
def _scores(deltas: Any, low: Any, high: Any, intra: bool, inter: int, out: Any) -> None:
    totals = np.empty(_TILE, np.float64)
    count = np.float64(deltas.shape[0])
    for first in range(0, deltas.shape[1], _TILE):
        total = totals[: min(_TILE, deltas.shape[1] - first)]
        total[:] = 0.0
        for i in range(deltas.shape[0]):
            row = deltas[i, first : first + _TILE]
            bottom, top = low[i], high[i]
            span = top - bottom
            if inter == 1:
                for j in range(total.size):
                    total[j] += np.float64(row[j])
            elif inter == 2:
                for j in range(total.size):
                    x = np.float64(row[j])
                    place = _place(x, bottom, top, span)
                    total[j] += place if x > 0.0 else (-place if x < 0.0 else 0.0)
        for i in range(deltas.shape[0]):
            row, part = deltas[i, first : first + _TILE], out[i, first : first + _TILE]
            bottom, top = low[i], high[i]
            span = top - bottom
            if intra and inter:
                for j in range(total.size):
                    x = np.float64(row[j])
                    place = _place(x, bottom, top, span)
                    part[j] = np.float32(_exp((place * place - 1.0) * count) * _tanh(x * total[j]))
            elif intra:
                for j in range(total.size):
                    place = _place(np.float64(row[j]), bottom, top, span)
                    part[j] = np.float32(_exp((place * place - 1.0) * count))
            else:
                for j in range(total.size):
                    part[j] = np.float32(_tanh(np.float64(row[j]) * total[j]) if inter else 1.0)


def competition_scores(deltas: Work, low: Sums, high: Sums, intra: bool, inter: int, out: NDArray[np.float32]) -> None:
    """out[i] = the score of each entry of expert i; see the reference."""
    _scores(deltas, low, high, intra, inter, out)


@jit
def _coefficients(scores: Any, limit: Any, top: Any, zero: Any, one: Any, out: Any) -> None:
    span = top - limit
    if span > 0.0:
        for j in range(scores.size):
            x = np.float64(scores[j])
            out[j] = (x - limit) / span if x > limit else 0.0
    else:
        for j in range(scores.size):
            out[j] = one if np.float64(scores[j]) >= top else zero


def coefficients(scores: NDArray[np.float32], limits: Sums, tops: Sums, out: Work) -> None:
    """out[i] = how far each score lies above the limit on the way to the top; see the reference."""
    number = out.dtype.type
    for row, limit, top, result in zip(scores, limits, tops, out, strict=True):
        _coefficients(row, float(limit), float(top), number(0), number(1), result)


@jit
def _balanced_sum(deltas: Any, shares: Any, low: Any, high: Any, scale: Any, zero: Any, floor: Any, out: Any) -> None:
    totals = np.empty(_TILE, out.dtype)
    for first in range(0, out.size, _TILE):
        part = out[first : first + _TILE]
        total = totals[: part.size]
        total[:] = zero
        part[:] = zero
        for i in range(deltas.shape[0]):
            row, share = deltas[i, first : first + _TILE], shares[i, first : first + _TILE]
            bottom, top, factor = low[i], high[i], scale[i]
            for j in range(part.size):
                x = row[j]
                size = min(max(abs(x), bottom), top)
                bounded = size if x > zero else (-size if x < zero else zero)
                part[j] += bounded * factor * share[j]
                total[j] += share[j]
        for j in range(part.size):
            part[j] /= max(total[j], floor)


def balanced_sum(deltas: Work, shares: Work, low: Work, high: Work, scale: Work, out: Work) -> None:
    """Out = the sum of the bounded deltas weighted by their shares, over the sum of the shares; see the reference."""
    number = out.dtype.type
    _balanced_sum(deltas, shares, low, high, scale, number(0), number(LEAST_SHARE), out)
