"""CombMNZ: the sum of the normalised scores, times the number of lists that have the key.

    score(d) = |{i: d in list i}| * sum_i w_i * norm_i(d)

Use: lists that make different mistakes, where agreement is the best evidence.
Avoid: lists over different parts of the collection, which cannot agree.

Source: Fox and Shaw 1994; Lee 1997.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from consilience.retrieval.fusion.protocol import Fused, Ranking, best_first, factors, gather, normalised


def combmnz(
    rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None, normalise: str = "min_max"
) -> Fused:
    """Return keys by the sum of their scores, times the number of lists they are in.

    >>> combmnz([[("a", 4.0), ("b", 3.0), ("c", 0.0)], [("b", 5.0)]])
    [('b', 3.5), ('a', 1.0), ('c', 0.0)]

    weights: factors of the lists, 1 without them; they do not change the number. normalise: "min_max", "sum", "none".
    """
    terms = gather(
        ((key, weight * value) for key, value in normalised(ranking, normalise))
        for ranking, weight in zip(rankings, factors(weights, len(rankings)), strict=True)
    )
    return best_first({key: len(values) * math.fsum(values) for key, values in terms.items()})
