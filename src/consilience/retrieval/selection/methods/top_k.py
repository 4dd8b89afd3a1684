"""Top k: the most relevant candidates.

    F(S) = sum_{u in S} rel(u)

Use: the answer is in one document.
Avoid: many candidates say the same; the set then says one thing k times.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from consilience.retrieval.selection.protocol import Candidates, Objective


class _Relevance(Objective):
    submodular = True

    def __init__(self, candidates: Candidates) -> None:
        self._relevance = candidates.relevance

    def gains(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._relevance[indices]

    def add(self, index: int) -> None:
        """Nothing changes: every candidate is worth the same whatever is chosen."""


def top_k(candidates: Candidates) -> Objective:
    """Return the sum of relevance as an objective.

    >>> top_k(Candidates(np.eye(2), np.array([0.2, 0.9]))).gains(np.array([1, 0]))
    array([0.9, 0.2])
    """
    return _Relevance(candidates)
