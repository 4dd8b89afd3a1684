"""Kernels of parameter competition (PCB) in plain NumPy; the rules of `reference` hold here too.

Scores are computed in float64 from additions, multiplications and divisions alone, so that they are the same on every
machine, and rounded once to float32. `low` and `high` bound the magnitudes of each expert.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels.elementary import exponential

Work = NDArray[Any]
Sums = NDArray[np.float64]

TANH = tuple(n / d for n, d in ((21844, 6081075), (-1382, 155925), (62, 2835), (-17, 315), (2, 15), (-1, 3)))
"""Taylor coefficients of tanh(x) / x - 1 over powers of x * x, the highest first."""

SERIES = 0.125
"""Below this magnitude the series is used, above it the exponential: both are within 1e-13 there."""

LEAST_SHARE = 1e-12
"""The sum of coefficients counts as at least this much."""


def _tanh(x: Sums) -> Sums:
    square = x * x
    series = np.full_like(x, TANH[0])
    for factor in TANH[1:]:
        series = series * square + factor
    decay = exponential(np.abs(x) * -2.0)
    far = np.copysign((1.0 - decay) / (1.0 + decay), x)
    return np.where(np.abs(x) < SERIES, x + x * (series * square), far)


def _places(row: Sums, low: float, high: float) -> Sums:
    """Where each magnitude lies between the bounds, 0 to 1; 1 where the bounds are equal."""
    if high <= low:
        return np.ones_like(row)
    return (np.minimum(np.maximum(np.abs(row), low), high) - low) / (high - low)


def competition_scores(deltas: Work, low: Sums, high: Sums, intra: bool, inter: int, out: NDArray[np.float32]) -> None:
    """out[i] = the score of each entry of expert i: the product of two factors.

    `intra`: exp(n * (m**2 - 1)) with n experts and m the place between the bounds; 1 where it is left out. `inter` 1:
    tanh(d_i * sum_j d_j); 2: tanh(d_i * sum_j sign(d_j) m_j); 0: 1.
    """
    with np.errstate(all="ignore"):
        wide = deltas.astype(np.float64)
        total = np.zeros(wide.shape[1])
        if inter:
            for row, bottom, top in zip(wide, low, high, strict=True):
                total += row if inter == 1 else np.sign(row) * _places(row, bottom, top)
        for row, bottom, top, scores in zip(wide, low, high, out, strict=True):
            score = np.ones_like(row)
            if intra:
                place = _places(row, bottom, top)
                score = exponential((place * place - 1.0) * len(wide))
            scores[:] = score * _tanh(row * total) if inter else score


def coefficients(scores: NDArray[np.float32], limits: Sums, tops: Sums, out: Work) -> None:
    """out[i] = how far each score lies above the limit on the way to the top, 0 to 1.

    Where the limit of an expert is its top, scores that reach it give 1, others 0.
    """
    for row, limit, top, result in zip(scores, limits, tops, out, strict=True):
        wide = row.astype(np.float64)
        if top > limit:
            result[:] = np.where(wide > limit, (wide - limit) / (top - limit), 0.0)
        else:
            result[:] = wide >= top


def balanced_sum(deltas: Work, shares: Work, low: Work, high: Work, scale: Work, out: Work) -> None:
    """Out = sum of scale[i] * (bounded delta of expert i) * shares[i] over the sum of the shares; 0 stays 0."""
    total = np.zeros_like(out)
    out[:] = 0
    for row, share, bottom, top, factor in zip(deltas, shares, low, high, scale, strict=True):
        bounded = np.sign(row) * np.minimum(np.maximum(np.abs(row), bottom), top)
        out += bounded * factor * share
        total += share
    out /= np.maximum(total, out.dtype.type(LEAST_SHARE))
