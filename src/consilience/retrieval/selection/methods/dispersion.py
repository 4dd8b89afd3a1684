"""Dispersion: the sum of distances between the chosen, and of their relevance.

    F(S) = sum_{pairs u, v in S} (1 - s(u, v)) + lambda * sum_{u in S} rel(u)     s = cosine, 0 where it is below

NOT submodular: what a candidate adds grows with the set, so there is no guarantee of 1 - 1/e, no lazy evaluation and no
form with a budget. The number of pairs grows faster than the sum of relevance: the later choices go by distance.

Use: few candidates that are all relevant, and a set as varied as can be.
Avoid: candidates of mixed relevance; outliers win.

Source: max-sum diversification, Gollapudi and Sharma 2009.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RecipeError
from consilience.retrieval.selection.protocol import Candidates, Objective


class _Distances(Objective):
    def __init__(self, candidates: Candidates, lambda_: float) -> None:
        self._candidates = candidates
        self._gains = lambda_ * candidates.relevance
        self.tolerance = candidates.resolution

    def gains(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._gains[indices]

    def add(self, index: int) -> None:
        self._gains += 1.0 - self._candidates.similarities(index)


def dispersion(candidates: Candidates, *, lambda_: float = 1.0) -> Objective:
    """Return the sum of distances and relevance as an objective.

    >>> objective = dispersion(Candidates(np.eye(2), np.array([0.5, 1.0])))
    >>> objective.add(1)
    >>> objective.gains(np.array([0]))
    array([1.5])

    lambda_: weight of relevance, 0 or more; with 0 the first choice is the first candidate, all gains being 0.
    """
    if not 0 <= lambda_ < math.inf:
        raise RecipeError(f"lambda_: {lambda_!r} is a weight; use a number from 0 on, usually 1")
    return _Distances(candidates, lambda_)
