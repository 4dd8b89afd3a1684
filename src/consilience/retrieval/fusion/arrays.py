"""The weighted fusion of two stores' finds as arrays: what `weighted` gives, in a third of the time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from consilience.stores.vectors import Found

__all__ = ["weighted_pair"]


def weighted_pair(lists: Sequence[Found], weights: Sequence[float], floor: float, k: int) -> list[tuple[int, float]]:
    """Return the best `k` numbers of documents with their scores, exactly those of `methods.weighted`.

    >>> words = Found(np.array([7, 3]), np.array([9.0, 1.0], np.float32))
    >>> vectors = Found(np.array([3, 5]), np.array([0.5, 0.25], np.float32))
    >>> weighted_pair([words, vectors], [0.75, 0.25], 0.0, 2)
    [(7, 0.75), (3, 0.25)]

    lists: two, best first, with finite scores; equal fused scores keep the order of the lists, one after the other.
    """
    total = weights[0] + weights[1]
    numbers = np.concatenate([one.numbers for one in lists])
    shares = np.concatenate(
        [weight / total * _min_max(one.scores, floor) for one, weight in zip(lists, weights, strict=True)]
    )
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    again = order[twice + 1]
    shares[order[twice]] += shares[again]
    shares[again] = -1.0  # below all others
    best = np.argsort(-shares, kind="stable")[: min(k, len(numbers) - len(again))]
    return list(zip(numbers[best].tolist(), shares[best].tolist(), strict=True))


def _min_max(scores: NDArray[np.float32], floor: float) -> NDArray[np.float64]:
    if not len(scores):
        return np.empty(0)
    values = scores.astype(np.float64)
    span = values[0] - values[-1]
    if span == 0:
        return np.ones(len(values))
    shares = (values - values[-1]) / span
    return np.asarray(floor + (1 - floor) * shares, np.float64) if floor else np.asarray(shares)
