"""Reciprocal rank fusion: ranks only, with little difference between the top ranks.

    score(d) = sum_i w_i / (constant + rank_i(d))                             over the lists that have d, ranks from 1

Use: lists whose scores cannot be compared, all of them about equally good.
Avoid: a list that is blind for the query: its first hits weigh as much as those of a list that is sure.

Source: Cormack, Clarke and Buettcher 2009.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from consilience.errors import RecipeError
from consilience.retrieval.fusion.protocol import Fused, Ranking, best_first, factors, gather


def rrf(rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None, constant: float = 60.0) -> Fused:
    """Return keys by the sum of their reciprocal ranks.

    >>> rrf([[("a", 0.9), ("b", 0.1)], [("b", 7.0)]], constant=1)
    [('b', 0.8333333333333333), ('a', 0.5)]

    weights: factors of the lists, 1 without them. constant: 0 or more; the larger, the less the top ranks stand out.
    """
    if not 0 <= constant < math.inf:
        raise RecipeError(f"constant: {constant!r} is added to ranks; use a number from 0 on, usually 60")
    terms = gather(
        ((key, weight / (constant + place)) for place, (key, _) in enumerate(ranking, start=1))
        for ranking, weight in zip(rankings, factors(weights, len(rankings)), strict=True)
    )
    return best_first({key: math.fsum(values) for key, values in terms.items()})
