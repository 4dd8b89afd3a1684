"""Weighted: scores of every list brought to 0..1, then their weighted mean.

    score(d) = sum_i w_i / sum(w) * (s_i(d) - min_i) / (max_i - min_i)        0 where list i does not have d

It keeps how sure each list is, so that a list that is blind for a query does little harm.

Use: the default; weights from development queries where there are any.
Avoid: lists whose scores mean nothing beyond their order.

Source: linear combination of Fox and Shaw 1994 with the normalisation of Lee 1997.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from consilience.retrieval.fusion.protocol import Fused, Ranking, best_first, factors, normalised, totals


def weighted(rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None, floor: float = 0.0) -> Fused:
    """Return keys by the weighted mean of their min-max scores, 0 to 1.

    >>> weighted([[("a", 0.9), ("b", 0.1)], [("b", 7.0)]], weights=[0.4, 0.6])
    [('b', 0.6), ('a', 0.4)]

    weights: shares of the lists, scaled to sum 1; equal without them. floor: what the last hit of a list gets, 0 to
    below 1; above 0, it is worth more than not to be in the list at all.
    """
    shares = factors(weights, len(rankings))
    total = math.fsum(shares)
    return best_first(
        totals(
            [
                [(key, share / total * value) for key, value in normalised(ranking, floor=floor)]
                for ranking, share in zip(rankings, shares, strict=True)
            ]
        )
    )
