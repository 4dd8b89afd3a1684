"""Small surveys to build others from: several in one pass, the extremes of series, and what follows from the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from consilience.merging.selection import Series
from consilience.merging.steps import Chunk, Statistics, Survey

__all__ = ["Conclusion", "Extremes", "Together"]


class Together:
    """Several surveys that need nothing of each other's results while they read, in one pass over the data.

    They finish in the order given, so a later one may use what an earlier one wrote.
    """

    def __init__(self, *surveys: Survey) -> None:
        self.surveys = surveys

    def start(self) -> list[Any]:
        """Return the empty states."""
        return [survey.start() for survey in self.surveys]

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        """Count one chunk."""
        for survey, part in zip(self.surveys, state, strict=True):
            survey.add(chunk, part, known)

    def close(self, state: Any) -> list[Any]:
        """Return the small forms."""
        return [survey.close(part) for survey, part in zip(self.surveys, state, strict=True)]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        """Finish each."""
        for place, survey in enumerate(self.surveys):
            survey.finish([state[place] for state in states], sizes, known)


class Extremes:
    """The smallest and the largest value of each series; the statistics hold them, as pairs, under `name`."""

    def __init__(self, name: str, values: Series) -> None:
        self.name = name
        self.values = values

    def start(self) -> dict[int, tuple[float, float]]:
        """Return no values."""
        return {}

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        """Look at one chunk."""
        for series, values in enumerate(self.values(chunk, known)):
            low, high = state.get(series, (math.inf, -math.inf))
            state[series] = (min(low, float(values.min())), max(high, float(values.max())))

    def close(self, state: Any) -> list[tuple[float, float]]:
        """Return one pair per series."""
        return [state[series] for series in range(len(state))]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        """Join the tensors."""
        joined = [(min(low for low, _ in pairs), max(high for _, high in pairs)) for pairs in zip(*states, strict=True)]
        for statistics in known:
            statistics[self.name] = joined


class Conclusion:
    """Reads nothing: draws a conclusion, the same for all tensors, from the statistics of surveys before it."""

    def __init__(self, draw: Callable[[Statistics, int], Statistics]) -> None:
        self.draw = draw

    def start(self) -> None:
        """Return nothing."""

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        """Pass over."""

    def close(self, state: Any) -> None:
        """Return nothing."""

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        """Write what `draw` returns of the statistics of one tensor and the number of values of all."""
        found = self.draw(known[0], sum(sizes))
        for statistics in known:
            statistics.update(found)
