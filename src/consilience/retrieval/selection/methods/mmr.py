"""Maximal marginal relevance: relevant, and unlike what is chosen already.

    gain(u) = lambda * rel(u) - (1 - lambda) * max_{v in S} s(u, v)               s = cosine, 0 where it is below

Use: a short list without repetition, fast for any number of candidates.
Avoid: where the set should represent the rest; what lies far from everything is unlike the chosen too.

Source: Carbonell and Goldstein 1998. Gains can be negative: it is a rule, not a set function, so there is no
guarantee and no form with a budget.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RecipeError
from consilience.retrieval.selection.protocol import Candidates, Objective


class _Marginal(Objective):
    def __init__(self, candidates: Candidates, lambda_: float) -> None:
        self._candidates, self._lambda = candidates, lambda_
        self._nearest = np.zeros(len(candidates))
        self.tolerance = candidates.resolution

    def gains(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        relevance = self._candidates.relevance[indices]
        gains: NDArray[np.float64] = self._lambda * relevance - (1 - self._lambda) * self._nearest[indices]
        return gains

    def add(self, index: int) -> None:
        np.maximum(self._nearest, self._candidates.similarities(index), out=self._nearest)


def mmr(candidates: Candidates, *, lambda_: float = 0.5) -> Objective:
    """Return maximal marginal relevance as an objective.

    >>> objective = mmr(Candidates(np.eye(2), np.array([0.2, 0.9])))
    >>> objective.add(1)
    >>> objective.gains(np.array([0, 1])).round(2)
    array([ 0.1 , -0.05])

    lambda_: share of relevance, 0 to 1; 1 is top k.
    """
    if not 0 <= lambda_ <= 1:
        raise RecipeError(f"lambda_: {lambda_!r} is the share of relevance; use a number from 0 to 1")
    return _Marginal(candidates, lambda_)
