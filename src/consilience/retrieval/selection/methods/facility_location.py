"""Facility location with relevance: every candidate is represented by the nearest chosen one.

    F(S) = sum_{v} rel(v) * max_{u in S} s(v, u) + lambda * sum_{u in S} rel(u)   s = cosine, 0 where it is below

Monotone and submodular: greedy selection reaches at least 1 - 1/e, 63 %, of the best set's value. lambda 0 is coverage
alone; a very large lambda is top k. A second copy of a chosen candidate covers nothing new and comes last.

Use: a few documents that stand for all that is near the query; the budgeted form packs a context.
Avoid: more than some thousands of candidates without `sample`: the gains take n * n similarities.

Source: facility location, Nemhauser, Wolsey and Fisher 1978; the form with relevance is our definition of "Beyond
Nearest Neighbors" (2025), whose formulas were not to be had.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RecipeError
from consilience.retrieval.selection.protocol import Candidates, Floats, Objective

_LARGEST = 20_000  # candidates
_KEPT = 256 << 20  # bytes: similarities up to here are computed once and kept
_BLOCK = 1 << 19  # similarities at a time: 2 MB in float32, which stays in the cache


class _Coverage(Objective):
    submodular = True

    def __init__(self, candidates: Candidates, lambda_: float, sample: int | None) -> None:
        relevance = candidates.relevance
        covered = np.flatnonzero(relevance)  # what has no relevance adds nothing to the sum
        weights = relevance[covered]
        if sample is not None and sample < len(covered):
            covered, weights = _sampled(relevance, sample)
        self._vectors = candidates.vectors
        self._columns: Floats = np.ascontiguousarray(candidates.vectors[covered])
        self._weights = weights.astype(self._vectors.dtype)
        self._bonus = lambda_ * relevance
        self._nearest = np.zeros(len(covered), self._vectors.dtype)
        self.tolerance = candidates.resolution * float(weights.sum())
        self._kept: Floats | None = None
        if len(candidates) * len(covered) * self._vectors.itemsize <= _KEPT:
            self._kept = self._vectors @ self._columns.T

    def gains(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        gains = self._bonus[indices]
        step = max(1, _BLOCK // max(1, len(self._columns)))
        for start in range(0, len(indices), step):
            block = self._similarities(indices[start : start + step])
            block -= self._nearest
            np.maximum(block, 0, out=block)
            gains[start : start + step] += block @ self._weights
        return gains

    def add(self, index: int) -> None:
        np.maximum(self._nearest, self._similarities(np.array([index]))[0], out=self._nearest)

    def _similarities(self, rows: NDArray[np.int64]) -> Floats:
        """Return cosines of some candidates with all that are to be covered, in an array of its own."""
        found: Floats = self._vectors[rows] @ self._columns.T if self._kept is None else self._kept[rows]
        return found


def _sampled(relevance: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return rows and weights that stand for all: equal steps through the sum of relevance, most relevant first."""
    order = np.argsort(-relevance, kind="stable")
    sums = np.cumsum(relevance[order])
    steps = (np.arange(size) + 0.5) * (sums[-1] / size)
    rows, times = np.unique(order[np.searchsorted(sums, steps)], return_counts=True)
    return rows, times * (sums[-1] / size)


def facility_location(candidates: Candidates, *, lambda_: float = 0.1, sample: int | None = None) -> Objective:
    """Return coverage of the candidates, weighted by relevance, as an objective.

    >>> candidates = Candidates(np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([0.5, 1.0]))
    >>> facility_location(candidates).gains(np.array([0, 1]))
    array([1.15, 1.4 ])

    lambda_: weight of relevance itself, 0 or more. sample: estimate the sum from that many candidates, taken at equal
    steps of relevance (no chance involved; any candidate can still be chosen); without it the sum is exact. Time is n *
    n * d (n * sample * d) for the first gains; later gains are lazy. Memory: n * n (n * sample) similarities are kept
    up to 256 MB, beyond that they are computed again in blocks of 2 MB, which is much slower.

    Raises RecipeError for more than 20,000 candidates: take the most relevant first with `top_n`.
    """
    if not 0 <= lambda_ < math.inf:
        raise RecipeError(f"lambda_: {lambda_!r} is a weight; use a number from 0 on, usually 0.1")
    if sample is not None and sample < 1:
        raise RecipeError(f"sample: {sample!r} is how many candidates stand for all; use 1 or more")
    if len(candidates) > _LARGEST:
        raise RecipeError(
            f"{len(candidates)} candidates: facility location compares all of them and takes at most {_LARGEST}; "
            f"give top_n={_LARGEST} (or fewer) to go on with the most relevant"
        )
    return _Coverage(candidates, lambda_, sample)
