"""Logarithmic inverse square rank: as `isr`, the number of lists counted by its logarithm.

    score(d) = log(|{i: d in list i}| + sigma) * sum_i w_i / rank_i(d)^2                                 ranks from 1

Use: as `isr`, where a key in one list only should come after every key in two.
Avoid: two lists with little in common: what is in one of them alone gets next to nothing.

Source: Mourao, Martins and Magalhaes 2013 (ImageCLEF); sigma keeps log(1) above 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from consilience.errors import RecipeError
from consilience.retrieval.fusion.protocol import Fused, Ranking, best_first, factors, gather


def log_isr(rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None, sigma: float = 0.01) -> Fused:
    """Return keys by the sum of their inverse square ranks, times the logarithm of the number of lists they are in.

    >>> [(key, round(score, 4)) for key, score in log_isr([[("a", 0.9), ("b", 0.1)], [("b", 7.0)]])]
    [('b', 0.8727), ('a', 0.01)]

    weights: factors of the lists, 1 without them. sigma: above 0.
    """
    if not 0 < sigma < math.inf:
        raise RecipeError(f"sigma: {sigma!r} keeps the logarithm of one list above 0; use a number above 0")
    terms = gather(
        ((key, weight / place**2) for place, (key, _) in enumerate(ranking, start=1))
        for ranking, weight in zip(rankings, factors(weights, len(rankings)), strict=True)
    )
    return best_first({key: math.log(len(values) + sigma) * math.fsum(values) for key, values in terms.items()})
