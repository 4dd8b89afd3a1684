"""What fusion methods take and return, and the few steps that they share.

A method is a function `name(rankings, *, weights=None, ...) -> Fused` in the file `methods/name.py`. It is handed lists
that `fuse` has checked: best first, finite scores, no key twice in a list, weights above 0. Whatever is summed is
summed exactly (`math.fsum`), so that the order of the lists changes no score; equal scores keep the order in which
keys are met when the lists are read one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from consilience.errors import RecipeError, did_you_mean

__all__ = ["Fused", "Fusion", "Key", "Origin", "Ranking", "best_first", "factors", "gather", "normalised", "totals"]

Key = str | int
"""What a hit is known by in every list."""

Ranking = Sequence[tuple[Key, float]]
"""Keys and scores, best first; scores never rise from one to the next."""

Fused = list[tuple[Key, float]]
"""Keys and fused scores, best first."""

Fusion = Callable[..., Fused]


class Origin(NamedTuple):
    """Where one list had a key: `rank` from 1, `score` as the list gave it."""

    rank: int
    score: float


def factors(weights: Sequence[float] | None, count: int) -> Sequence[float]:
    """Return the weights as they are; without any, 1 for every list.

    >>> factors(None, 2)
    (1.0, 1.0)
    """
    return (1.0,) * count if weights is None else weights


def gather(lists: Iterable[Iterable[tuple[Key, float]]]) -> dict[Key, list[float]]:
    """Return the terms of every key, keys in the order in which they are met.

    >>> gather([[("a", 1.0), ("b", 0.5)], [("b", 0.25)]])
    {'a': [1.0], 'b': [0.5, 0.25]}
    """
    terms: dict[Key, list[float]] = {}
    for pairs in lists:
        for key, value in pairs:
            terms.setdefault(key, []).append(value)
    return terms


def totals(lists: Sequence[Iterable[tuple[Key, float]]]) -> dict[Key, float]:
    """Return the exact sum of the terms of every key, rounded once; keys in the order in which they are met.

    >>> totals([[("a", 1.0), ("b", 0.5)], [("b", 0.25)]])
    {'a': 1.0, 'b': 0.75}
    """
    if len(lists) > 2:
        return {key: math.fsum(values) for key, values in gather(lists).items()}
    found: dict[Key, float] = {}
    for pairs in lists:  # a sum of two is rounded once as it is
        for key, value in pairs:
            found[key] = found[key] + value if key in found else value
    return found


def best_first(scores: Mapping[Key, float]) -> Fused:
    """Return keys and scores, best first; equal scores keep the order of the mapping.

    >>> best_first({"a": 0.1, "b": 0.7, "c": 0.7})
    [('b', 0.7), ('c', 0.7), ('a', 0.1)]
    """
    return sorted(scores.items(), key=itemgetter(1), reverse=True)


def normalised(ranking: Ranking, how: str = "min_max", floor: float = 0.0) -> Fused:
    """Return a list with its scores on a common scale.

    >>> normalised([("a", 8.0), ("b", 6.0), ("c", 4.0)])
    [('a', 1.0), ('b', 0.5), ('c', 0.0)]
    >>> normalised([("a", 8.0), ("b", 4.0)], floor=0.2)
    [('a', 1.0), ('b', 0.2)]

    "min_max": the best score becomes 1 and the last `floor` (0 to below 1); all equal, also a single one: all 1.
    "sum": the last becomes 0 and all add up to 1; all equal: the same share each. "none": scores stay. Raises
    RecipeError for another `how` or `floor`. Sources: Lee 1997; Montague and Aslam 2001.
    """
    if how not in (known := ("min_max", "sum", "none")):
        raise RecipeError(f"normalise: {how!r} is unknown{did_you_mean(how, known)}")
    if not 0 <= floor < 1:
        raise RecipeError(f"floor: {floor!r} is what the last hit of a list gets; use a number from 0 to below 1")
    if how == "none" or not ranking:
        return [(key, float(score)) for key, score in ranking]
    scores = [float(score) for _, score in ranking]
    if math.isinf(scores[0] - scores[-1]):  # the range of a list can be larger than the largest number
        scores = [score / 2 for score in scores]
    low, span = scores[-1], scores[0] - scores[-1]
    if span == 0:
        value = 1.0 if how == "min_max" else 1 / len(ranking)
        return [(key, value) for key, _ in ranking]
    shares = [(score - low) / span for score in scores]
    if how == "sum":
        total = math.fsum(shares)
        return [(key, share / total) for (key, _), share in zip(ranking, shares, strict=True)]
    return [(key, floor + (1 - floor) * share) for (key, _), share in zip(ranking, shares, strict=True)]
