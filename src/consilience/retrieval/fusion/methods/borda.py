"""Borda count: every list gives points by rank, and shares out the rest among the keys it does not have.

    n keys in all, list i holds n_i of them: rank r gets n - r + 1 points, every absent key (n - n_i + 1) / 2

Use: lists that rank nearly the same keys, such as rerankers of one candidate list.
Avoid: short lists that share little.

Source: Aslam and Montague 2001.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from consilience.retrieval.fusion.protocol import Fused, Ranking, best_first, factors


def borda(rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None) -> Fused:
    """Return keys by their points.

    >>> borda([[("a", 0.9), ("b", 0.5), ("c", 0.1)], [("b", 7.0)]])
    [('b', 5.0), ('a', 4.5), ('c', 2.5)]

    weights: factors of the lists, 1 without them.
    """
    keys = dict.fromkeys(key for ranking in rankings for key, _ in ranking)
    count = len(keys)
    points = []
    for ranking, weight in zip(rankings, factors(weights, len(rankings)), strict=True):
        given = {key: weight * (count - place) for place, (key, _) in enumerate(ranking)}
        absent = weight * (count - len(ranking) + 1) / 2
        points.append((given, absent))
    return best_first({key: math.fsum(given.get(key, absent) for given, absent in points) for key in keys})
