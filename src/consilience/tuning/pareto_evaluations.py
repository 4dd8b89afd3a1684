"""Real evaluations of coefficient vectors: counted, never repeated, never more than allowed, journalled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consilience.core.hashing import fingerprint
from consilience.errors import RequestError, WorkError

if TYPE_CHECKING:
    from consilience.core.jobs import Job

__all__ = ["Evaluate", "Evaluations"]

Array = NDArray[np.float64]
Evaluate = Callable[[Array], Sequence[float]]
"""Coefficients (E,) float64 -> one metric per task."""


class Evaluations:
    """Evaluates coefficient vectors, each once.

    >>> evaluations = Evaluations(lambda c: [c[0], 1 - c[0]], tasks=2, budget=2)
    >>> evaluations(np.array([[0.5, 0.0], [0.5, 0.0], [1.0, 0.0]])).tolist(), evaluations.used
    ([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]], 2)

    `points` and `metrics` hold what was evaluated, in order. A vector that was evaluated before costs nothing. With a
    job, finished evaluations are in its journal, and a resumed job does not repeat them. Raises WorkError before an
    evaluation beyond `budget`, RequestError where `evaluate` does not return one number per task.
    """

    def __init__(self, evaluate: Evaluate, tasks: int, budget: int, job: Job | None = None) -> None:
        self.budget = budget
        self._evaluate, self._tasks, self._job = evaluate, tasks, job
        self._known: dict[tuple[float, ...], list[float]] = {}

    @property
    def used(self) -> int:
        """Number of evaluations, those of the journal included."""
        return len(self._known)

    @property
    def points(self) -> Array:
        """Coefficients (N, E) that were evaluated, in order."""
        return np.array(list(self._known), np.float64)

    @property
    def metrics(self) -> Array:
        """Metrics (N, T) of `points`."""
        return np.array(list(self._known.values()), np.float64).reshape(len(self._known), self._tasks)

    def known(self, point: Array) -> bool:
        """Whether a vector was evaluated."""
        return tuple(point.tolist()) in self._known

    def __call__(self, points: Array) -> Array:
        """Return the metrics (N, T) of points (N, E)."""
        return np.array([self._one(tuple(row)) for row in np.atleast_2d(points).tolist()], np.float64)

    def _one(self, point: tuple[float, ...]) -> list[float]:
        if point not in self._known:
            if self.used >= self.budget:
                raise WorkError(f"the budget of {self.budget} evaluations is used up; raise it")
            self._known[point] = self._journalled(point)
        return self._known[point]

    def _journalled(self, point: tuple[float, ...]) -> list[float]:
        key = f"evaluation {fingerprint(point)}"
        if self._job is not None:
            self._job.check()
            if key in self._job.done:
                return [np.nan if value is None else value for value in self._job.done[key]["metrics"]]
        found = [float(value) for value in self._evaluate(np.array(point))]
        if len(found) != self._tasks:
            raise RequestError(f"an evaluation returned {len(found)} numbers; {self._tasks} tasks need one each")
        if self._job is not None:
            plain = [value if np.isfinite(value) else None for value in found]
            self._job.record(key, coefficients=list(point), metrics=plain)
        return found
