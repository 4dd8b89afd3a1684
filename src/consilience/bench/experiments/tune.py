"""Choosing parameters by counted evaluations: a grid, or a local search from a starting point."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.core.randomness import stream_key
from consilience.errors import RequestError

if TYPE_CHECKING:
    from consilience.bench.experiments.family import State

__all__ = ["Trial", "Tuned", "Tuning", "grid_points", "local_search"]


@dataclass(frozen=True)
class Trial:
    """Parameters that were tried and what they scored."""

    parameters: Mapping[str, Any]
    score: float


@dataclass(frozen=True)
class Tuned:
    """The best of several trials: parameters, the merged state, its score, and every trial in order."""

    parameters: dict[str, Any]
    state: State = field(repr=False)
    score: float
    trials: tuple[Trial, ...] = field(repr=False)
    merge_seconds: float = 0.0
    validation_seconds: float = 0.0


class Tuning:
    """Trials one after the other; the first of those that score highest is kept.

    >>> tuning = Tuning(make=lambda scale: {"w": scale}, score=lambda state: -abs(state["w"] - 2))
    >>> [tuning.attempt({"scale": scale}) for scale in (0, 1, 3)]
    [-2, -1, -1]
    >>> found = tuning.result()
    >>> found.parameters, found.score, len(found.trials)
    ({'scale': 1}, -1, 3)
    """

    def __init__(self, make: Callable[..., State], score: Callable[[State], float]) -> None:
        self._make, self._score = make, score
        self._trials: list[Trial] = []
        self._best: tuple[dict[str, Any], State, float] | None = None
        self._merging = self._validating = 0.0

    def attempt(self, point: Mapping[str, Any]) -> float:
        """Merge with the parameters of a point, score the result, return the score."""
        started = time.perf_counter()
        state = self._make(**point)
        merged = time.perf_counter()
        score = self._score(state)
        self._merging += merged - started
        self._validating += time.perf_counter() - merged
        self._trials.append(Trial(dict(point), score))
        if self._best is None or score > self._best[2]:
            self._best = dict(point), state, score
        return score

    def result(self) -> Tuned:
        """Return the best trial."""
        if self._best is None:
            raise RequestError("nothing to choose from: no parameters were tried")
        return Tuned(*self._best, tuple(self._trials), self._merging, self._validating)


def grid_points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination, the last parameter changing fastest.

    >>> grid_points({"density": [0.1, 0.2], "scale": [1]})
    [{'density': 0.1, 'scale': 1}, {'density': 0.2, 'scale': 1}]
    """
    empty = [name for name, values in grid.items() if not len(values)]
    if empty:
        raise RequestError(f"the grid has no values for {', '.join(empty)}")
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def local_search(
    attempt: Callable[[Sequence[float]], float],
    start: Sequence[float],
    *,
    low: float,
    high: float,
    budget: int,
    seed: int,
) -> None:
    """Make `budget` attempts, the first at `start`: normal steps from the best point, whose width follows success.

    A (1+1) evolution strategy: the width is multiplied by 1.5 after a success and by 1.5 ** -0.25 after a failure, so
    that about one step in five succeeds. Points stay within [low, high]. `attempt` remembers the best.

    Source: H.-G. Beyer, H.-P. Schwefel, Evolution strategies (2002).
    """
    random = np.random.Generator(np.random.Philox(stream_key(seed, "local search")))
    best, width = np.asarray(start, np.float64), (high - low) / 4
    top = attempt(best.tolist())
    for _ in range(budget - 1):
        point = np.clip(best + width * random.standard_normal(len(best)), low, high)
        score = attempt(point.tolist())
        width *= 1.5 if score > top else 1.5**-0.25
        if score > top:
            best, top = point, score
