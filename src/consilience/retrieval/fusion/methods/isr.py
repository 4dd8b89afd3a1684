"""Inverse square rank: ranks only, with a steep top and a reward for agreement.

    score(d) = |{i: d in list i}| * sum_i w_i / rank_i(d)^2                                              ranks from 1

Use: lists whose first hit is nearly always right.
Avoid: noisy lists; everything below the first few ranks hardly counts.

Source: Mourao, Martins and Magalhaes 2013 (ImageCLEF).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from consilience.retrieval.fusion.protocol import Fused, Ranking, best_first, factors, gather


def isr(rankings: Sequence[Ranking], *, weights: Sequence[float] | None = None) -> Fused:
    """Return keys by the sum of their inverse square ranks, times the number of lists they are in.

    >>> isr([[("a", 0.9), ("b", 0.1)], [("b", 7.0)]])
    [('b', 2.5), ('a', 1.0)]

    weights: factors of the lists, 1 without them; they do not change the number.
    """
    terms = gather(
        ((key, weight / place**2) for place, (key, _) in enumerate(ranking, start=1))
        for ranking, weight in zip(rankings, factors(weights, len(rankings)), strict=True)
    )
    return best_first({key: len(values) * math.fsum(values) for key, values in terms.items()})
