"""CombSUM: the sum of the normalised scores.

    score(d) = sum_i w_i * norm_i(d)                                                    over the lists that have d

With "min_max" it orders as `weighted` does; scores are sums, not means.

Use: `normalise="none"` for scores that are on one scale already, "sum" where long lists should not count more.
Avoid: raw scores of different kinds.

Source: Fox and Shaw 1994; the normalisation "sum": Montague and Aslam 2001.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from consilience.retrieval.fusion.protocol import Fused, Ranking, best_first, factors, gather, normalised


def combsum(
    rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None, normalise: str = "min_max"
) -> Fused:
    """Return keys by the sum of their scores.

    >>> combsum([[("a", 3.0), ("b", 1.0)], [("b", 5.0)]])
    [('a', 1.0), ('b', 1.0)]
    >>> combsum([[("a", 3.0), ("b", 1.0)], [("b", 5.0)]], normalise="none")
    [('b', 6.0), ('a', 3.0)]

    weights: factors of the lists, 1 without them. normalise: "min_max", "sum" or "none".
    """
    terms = gather(
        ((key, weight * value) for key, value in normalised(ranking, normalise))
        for ranking, weight in zip(rankings, factors(weights, len(rankings)), strict=True)
    )
    return best_first({key: math.fsum(values) for key, values in terms.items()})
