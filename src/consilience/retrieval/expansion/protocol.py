"""What operators on queries return, and how what their variations found becomes one list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from consilience.retrieval.fusion import fuse
from consilience.stores.vectors import Found

__all__ = ["Expansion", "Variation", "combined"]


@dataclass(frozen=True)
class Variation:
    """A text to search with, and how much what it finds counts; stores: which it is for, all by default."""

    text: str
    weight: float = 1.0
    stores: tuple[str, ...] | None = None


Expansion = Callable[[str], Sequence[Variation]]


def combined(lists: Sequence[tuple[Found, float]]) -> Found:
    """Return what several variations found in one store as one list: the weighted mean of their scores, each 0 to 1.

    The coverage is the largest. A single list stays as it is.
    """
    if len(lists) == 1:
        return lists[0][0]
    named = {
        str(place): list(zip(one.numbers.tolist(), one.scores.tolist(), strict=True))
        for place, (one, _) in enumerate(lists)
    }
    fused = fuse(named, "weighted", weights={str(place): weight for place, (_, weight) in enumerate(lists)})
    known = [one.coverage for one, _ in lists if one.coverage is not None]
    numbers, scores = [int(number) for number, _ in fused], [score for _, score in fused]
    return Found(np.array(numbers, np.int64), np.array(scores, np.float32), max(known, default=None))
