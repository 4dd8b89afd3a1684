"""Interleave: the lists take turns; a key that is there already is passed over and the turn is lost.

    score(d) = 1 / place of d in the result

Use: a page that should show something of every list, such as answers of different kinds.
Avoid: one list is clearly better than the others.

Source: round robin; with weights, the list whose share is furthest behind has the next turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from consilience.retrieval.fusion.protocol import Fused, Key, Ranking, factors


def interleave(rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None) -> Fused:
    """Return keys as the lists bring them in turn.

    >>> [key for key, _ in interleave([[("a", 3.0), ("b", 2.0), ("c", 1.0)], [("b", 9.0), ("d", 8.0)]])]
    ['a', 'b', 'd', 'c']
    >>> [key for key, _ in interleave([[("a", 3.0), ("b", 2.0), ("c", 1.0)], [("d", 9.0)]], weights=[2, 1])]
    ['a', 'd', 'b', 'c']

    weights: how often a list has its turn, in proportion; equal without them.
    """
    shares = factors(weights, len(rankings))
    credit = [0.0] * len(rankings)
    read = [0] * len(rankings)
    keys: dict[Key, None] = {}
    while open_lists := [i for i, ranking in enumerate(rankings) if read[i] < len(ranking)]:
        for i in open_lists:
            credit[i] += shares[i]
        turn = max(open_lists, key=lambda i: credit[i])
        credit[turn] -= sum(shares[i] for i in open_lists)
        keys.setdefault(rankings[turn][read[turn]][0])
        read[turn] += 1
    return [(key, 1 / place) for place, key in enumerate(keys, start=1)]
