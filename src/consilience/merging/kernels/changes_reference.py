"""Kernels that look at each change of each expert, in plain NumPy; the rules of `reference` hold here too.

A change is an entry of a task vector. A row is a run of `row` elements; arrays hold whole rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import LANES
from consilience.merging.kernels.elementary import exponential, logarithm

Work = NDArray[Any]
Sums = NDArray[np.float64]

SMOOTHING = 1e-8
"""Added to every probability before logarithms are taken."""


def count_changes(deltas: Work, epsilon: float, out: NDArray[np.int64]) -> None:
    """Count the changes above epsilon in magnitude: add to out[0, i] those that only expert i has, to out[1, i] those
    that it shares with another.
    """
    changed = np.abs(deltas) > deltas.dtype.type(epsilon)
    alone = changed.sum(axis=0) == 1
    out[0] += (changed & alone).sum(axis=1)
    out[1] += (changed & ~alone).sum(axis=1)


def changed_mean(deltas: Work, epsilon: float, scales: Work, out: Work) -> None:
    """Out = the mean of the changes above epsilon in magnitude; one that a single expert has times that expert's scale.

    0 where no expert has one.
    """
    count, total, alone = np.zeros_like(out), np.zeros_like(out), np.zeros_like(out)
    for row, scale in zip(deltas, scales, strict=True):
        changed = np.abs(row) > row.dtype.type(epsilon)
        count += changed
        total += np.where(changed, row, 0)
        alone += np.where(changed, row * scale, 0)
    out[:] = np.where(count == 1, alone, total / np.maximum(count, 1))


def deviation_mean(deltas: Work, inverse: bool, out: Work) -> None:
    """Out = the mean of the changes, each weighted by its own magnitude, or by the inverse of it.

    0 where all are 0, and with `inverse` where any is.
    """
    total = np.zeros_like(out)
    out[:] = 0
    with np.errstate(divide="ignore"):
        for row in deltas:
            total += 1 / np.abs(row) if inverse else np.abs(row)
    if inverse:
        for row in deltas:
            out += np.sign(row)
        out /= total
        return
    total[total == 0] = 1
    for row in deltas:
        out += row * (np.abs(row) / total)


def _lanes(values: Sums) -> Sums:
    """Sum each row: lanes run down it, then they are added in order. Rows are zero-padded to whole lanes."""
    row = values.shape[1]
    padded = np.zeros((len(values), -(-row // LANES) * LANES))
    padded[:, :row] = values
    lanes = np.add.reduce(padded.reshape(len(values), -1, LANES), axis=1, initial=0.0)
    total: Sums = lanes[:, 0].copy()
    for lane in range(1, LANES):
        total += lanes[:, lane]
    return total


def _softmax(values: Work, row: int) -> Sums:
    rows = values.reshape(-1, row).astype(np.float64)
    powers = exponential(rows - rows.max(axis=1, keepdims=True))
    return powers * (1.0 / _lanes(powers))[:, None] + SMOOTHING


def row_divergence(a: Work, b: Work, row: int, out: Sums) -> None:
    """out[r] = Kullback-Leibler divergence of softmax(b) from softmax(a) over row r, probabilities plus SMOOTHING."""
    first, second = _softmax(a, row), _softmax(b, row)
    out[:] = _lanes(second * logarithm(second / first))
