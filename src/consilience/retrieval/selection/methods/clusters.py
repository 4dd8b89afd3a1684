"""Concave over clusters: relevance counts less and less within one cluster.

    F(S) = sum_c sqrt(sum_{u in S and c} rel(u))

Monotone and submodular: greedy selection reaches at least 1 - 1/e of the best set's value.

Use: known groups, such as sources, sections or topics, that should all be heard.
Avoid: clusters that mean nothing; the candidates' own similarities say more then (facility_location).

Source: Lin and Bilmes 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RecipeError
from consilience.retrieval.selection.protocol import Candidates, Objective

_ROUNDS = 10


class _Concave(Objective):
    submodular = True

    def __init__(self, candidates: Candidates, labels: NDArray[np.int64]) -> None:
        self._relevance, self._labels = candidates.relevance, labels
        self._sums = np.zeros(labels.max(initial=-1) + 1)

    def gains(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        sums = self._sums[self._labels[indices]]
        gains: NDArray[np.float64] = np.sqrt(sums + self._relevance[indices]) - np.sqrt(sums)
        return gains

    def add(self, index: int) -> None:
        self._sums[self._labels[index]] += self._relevance[index]


def clusters(
    candidates: Candidates, *, labels: Sequence[str | int] | None = None, number: int | None = None
) -> Objective:
    """Return the sum of square roots of relevance by cluster as an objective.

    >>> candidates = Candidates(np.eye(3), np.array([0.81, 0.64, 0.25]))
    >>> objective = clusters(candidates, labels=["law", "law", "health"])
    >>> objective.add(0)
    >>> objective.gains(np.array([1, 2])).round(3)
    array([0.304, 0.5  ])

    labels: the cluster of every candidate. Without them, `number` clusters (default: the square root of
    the number of candidates, 32 at most) are made by k-means on the sphere, which starts from the most relevant
    candidate and from those farthest from all starts so far; the same candidates give the same clusters.
    """
    if labels is not None:
        if number is not None:
            raise RecipeError("`labels` and `number` both say what the clusters are; give one of them")
        total = len(candidates) if candidates.total is None else candidates.total
        if len(labels) != total:
            raise RecipeError(f"labels: {len(labels)} for {total} candidates; give one each")
        places: dict[str | int, int] = {}
        numbers = np.array([places.setdefault(label, len(places)) for label in labels], np.int64)
        return _Concave(candidates, numbers if candidates.rows is None else numbers[candidates.rows])
    if number is not None and number < 1:
        raise RecipeError(f"number: {number!r} clusters; use 1 or more")
    wanted = min(32, math.ceil(math.sqrt(len(candidates)))) if number is None else number
    return _Concave(candidates, _spherical(candidates, min(wanted, len(candidates))))


def _spherical(candidates: Candidates, number: int) -> NDArray[np.int64]:
    """Return the cluster of every candidate by k-means on the sphere."""
    vectors = candidates.vectors
    starts = [int(np.argmax(candidates.relevance))]
    nearest = vectors @ vectors[starts[0]]
    while len(starts) < number:
        starts.append(int(np.argmin(nearest)))
        np.maximum(nearest, vectors @ vectors[starts[-1]], out=nearest)
    centres = vectors[starts]
    labels = np.full(len(vectors), -1, np.int64)
    for _ in range(_ROUNDS):
        found = np.argmax(vectors @ centres.T, axis=1)
        if np.array_equal(found, labels):
            break
        labels = found
        for cluster in range(number):
            middle = vectors[labels == cluster].sum(axis=0, dtype=np.float64)
            if length := float(np.linalg.norm(middle)):  # an empty cluster keeps its centre
                centres[cluster] = middle / length
    return labels
