"""Log-determinant: the volume that the chosen vectors span, each as long as it is relevant.

    F(S) = log det L_S        L_ij = rel(i) * cos(i, j) * rel(j), plus epsilon on the diagonal

The greedy choice of a determinantal point process: a set of relevant candidates in different directions. The cosine
is not cut off at 0 here: with the cut it is no kernel (not positive semidefinite), and its determinant has no meaning.

Use: strong diversity with few candidates left out for being close to two others together.
Avoid: more items than the vectors have dimensions; they then span nothing new.

Source: Kulesza and Taskar 2012; the greedy Cholesky update: Chen, Zhang and Zhou 2018, arXiv 1709.05135. Gains can
be negative, so there is no form with a budget.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RecipeError
from consilience.retrieval.selection.protocol import Candidates, Objective


class _Volume(Objective):
    def __init__(self, candidates: Candidates, epsilon: float) -> None:
        self._candidates, self._epsilon = candidates, epsilon
        self._factors: list[NDArray[np.float64]] = []  # rows of the Cholesky factor, one per chosen candidate
        self._left = candidates.relevance**2 + epsilon
        self.tolerance = candidates.resolution

    def gains(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        # The diagonal that is left is never below epsilon but for rounding.
        gains: NDArray[np.float64] = np.log(np.maximum(self._left[indices], self._epsilon))
        return gains

    def add(self, index: int) -> None:
        relevance = self._candidates.relevance
        row = relevance[index] * self._candidates.cosines(index) * relevance
        row[index] = relevance[index] ** 2 + self._epsilon
        for factor in self._factors:
            row -= factor[index] * factor
        row /= math.sqrt(max(self._left[index], self._epsilon))
        self._factors.append(row)
        self._left -= row**2


def log_determinant(candidates: Candidates, *, epsilon: float = 1e-6) -> Objective:
    """Return the log-determinant of the chosen part of the kernel as an objective.

    >>> objective = log_determinant(Candidates(np.eye(2), np.array([0.5, 1.0])))
    >>> objective.gains(np.array([0, 1])).round(3)
    array([-1.386,  0.   ])

    epsilon: added to the diagonal, above 0; candidates without relevance are worth log(epsilon).
    """
    if not 0 < epsilon < math.inf:
        raise RecipeError(f"epsilon: {epsilon!r} keeps the kernel invertible; use a number above 0")
    return _Volume(candidates, epsilon)
