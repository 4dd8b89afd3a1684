"""Condorcet: every pair of keys is put to the vote of the lists; keys are ordered by the pairs they win.

    score(d) = (pairs won + half of the pairs drawn) / (number of other keys)

A list prefers what it ranks higher, prefers all it has to all it does not have, and has no vote between two absent
keys. A key that beats every other is always first.

Use: three lists or more, whose scores cannot be compared.
Avoid: two lists of one weight: wherever they differ, the pair is drawn.

Source: Montague and Aslam 2002; pairs are counted as Copeland 1951 does, because votes can go in circles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from consilience.retrieval.fusion.protocol import Fused, Ranking, best_first, factors

_PAIRS = 4_000_000  # pairs voted on at a time: 32 MB of margins


def condorcet(rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None) -> Fused:
    """Return keys by the share of the other keys that they beat, 0 to 1.

    >>> lists = [[("a", 3.0), ("b", 2.0), ("c", 1.0)], [("b", 9.0), ("a", 8.0)], [("a", 0.5), ("c", 0.1)]]
    >>> condorcet(lists)
    [('a', 1.0), ('b', 0.5), ('c', 0.0)]

    weights: votes of the lists, 1 each without them. Time grows with the square of the number of keys.
    """
    places = {key: row for row, key in enumerate(dict.fromkeys(key for ranking in rankings for key, _ in ranking))}
    count = len(places)
    if count == 0:
        return []
    votes = factors(weights, len(rankings))
    ranks = np.full((len(rankings), count), count, np.int32)
    for row, ranking in zip(ranks, rankings, strict=True):
        row[[places[key] for key, _ in ranking]] = np.arange(len(ranking), dtype=np.int32)
    drawn = 1e-12 * math.fsum(votes)  # 0.1 + 0.2 against 0.3 is a draw
    won = np.empty(count)
    step = max(1, _PAIRS // count)
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        margin = np.zeros((block.stop - start, count))
        for row, vote in zip(ranks, votes, strict=True):
            margin += vote * np.sign(row[None, :] - row[block, None])
        won[block] = (margin > drawn).sum(axis=1) + 0.5 * ((np.abs(margin) <= drawn).sum(axis=1) - 1)
    shares = won / (count - 1) if count > 1 else np.ones(1)
    return best_first(dict(zip(places, shares.tolist(), strict=True)))
