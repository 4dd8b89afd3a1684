"""Pareto fronts: which points are not dominated, the front of a surrogate, hypervolume, and choosing one point."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.core.randomness import stream_key
from consilience.errors import MissingExtraError, Problems, RequestError, WorkError, did_you_mean
from consilience.tuning.pareto_surrogate import Surrogate

__all__ = [
    "By",
    "Constraint",
    "choose_point",
    "find_front",
    "hypervolume",
    "parse_constraint",
    "parse_preference",
    "pareto_mask",
    "preference_vector",
    "spread",
]

Array = NDArray[np.float64]
By = Literal["weighted_sum", "chebyshev"]
_AUGMENT = 1e-6  # of the weighted sum, which decides between points of equal largest distance
_BLOCK = 1 << 22
_DIGITS = 4  # of coefficients: a recipe is for reading


def pareto_mask(values: ArrayLike, higher: bool | Sequence[bool] = True) -> NDArray[np.bool_]:
    """Return which rows of (N, T) are not dominated; of equal rows all are kept.

    >>> pareto_mask([[1, 0], [0, 1], [0, 0.5], [1, 0]]).tolist()
    [True, True, False, True]

    higher: whether larger is better, for all tasks or one per task. A row with NaN is never on the front.
    """
    v = _signed(values, higher)
    kept = np.ones(len(v), np.bool_)
    step = max(_BLOCK // max(v.size, 1), 1)
    for start in range(0, len(v), step):
        block = v[start : start + step, None]
        beaten = np.logical_and((v >= block).all(axis=2), (v > block).any(axis=2))
        kept[start : start + step] = ~np.any(beaten, axis=1)
    return kept & np.isfinite(v).all(axis=1)


def hypervolume(values: ArrayLike, reference: ArrayLike, higher: bool | Sequence[bool] = True) -> float:
    """Return the volume that the rows of (N, T) dominate, down to the point `reference` (T,).

    >>> round(hypervolume([[1.0, 0.5], [0.5, 1.0]], [0, 0]), 6)
    0.75

    Needs pymoo (the extra `fitting`).
    """
    try:
        from pymoo.indicators.hv import HV
    except ImportError:
        raise MissingExtraError("pymoo", "fitting") from None
    v, corner = _signed(values, higher), _signed(reference, higher)[0]
    inside = v[(v > corner).all(axis=1)]
    return float(HV(ref_point=-corner)(-inside)) if len(inside) else 0.0


def find_front(
    surrogate: Surrogate,
    *,
    higher: bool | Sequence[bool] = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    population: int = 100,
    generations: int = 40,
    seed: int = 0,
) -> Array:
    """Return coefficient vectors (N, E) that are not dominated in what the surrogate predicts.

    NSGA-II for up to two tasks, NSGA-III for more (pymoo), within `bounds`; the same seed finds the same points. For a
    single task the one best point. Raises MissingExtraError without pymoo.

    Source: Deb et al., NSGA-II (2002) and NSGA-III (2014).
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.moo.nsga3 import NSGA3
        from pymoo.core.problem import Problem
        from pymoo.optimize import minimize
        from pymoo.util.ref_dirs import get_reference_directions
    except ImportError:
        raise MissingExtraError("pymoo", "fitting") from None
    tasks = len(surrogate.activations)

    class Predicted(Problem):  # type: ignore[misc]
        def _evaluate(self, x: Array, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = -_signed(surrogate.predict(x), higher)

    low, high = bounds
    problem = Predicted(n_var=surrogate.experts, n_obj=tasks, xl=low, xu=high)
    number = stream_key(seed, "pareto front") % (1 << 31)
    if tasks < 3:
        algorithm = NSGA2(pop_size=population)
    else:
        parts = next(p for p in range(1, population + 1) if comb(p + tasks - 1, p) >= population)
        algorithm = NSGA3(get_reference_directions("das-dennis", tasks, n_partitions=parts))
    found = minimize(problem, algorithm, ("n_gen", generations), seed=number, verbose=False)
    rounded = np.round(np.atleast_2d(np.asarray(found.X, np.float64)), _DIGITS)
    points: Array = np.asarray(np.unique(rounded, axis=0), np.float64)
    predicted = surrogate.predict(points)
    points, predicted = points[kept := pareto_mask(predicted, higher)], predicted[kept]
    order = np.lexsort((*points.T, -_signed(predicted, higher)[:, 0]))
    return points[order] if tasks > 1 else points[order[:1]]


def spread(values: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return at most `count` rows of (N, T) that lie far from each other, the best of each task among them.

    >>> spread([[0, 1], [0.1, 0.9], [0.5, 0.5], [1, 0]], 3).tolist()
    [0, 2, 3]

    Distances are measured after each column is brought to [0, 1]; ascending indices.
    """
    v = np.asarray(values, np.float64)
    if len(v) <= count:
        return np.arange(len(v))
    width = np.ptp(v, axis=0)
    scaled = (v - v.min(axis=0)) / np.where(width > 0, width, 1)
    chosen = list(dict.fromkeys(scaled.argmax(axis=0).tolist()))[:count]
    distance = np.min([np.linalg.norm(scaled - scaled[i], axis=1) for i in chosen], axis=0)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[chosen[-1]], axis=1))
    return np.sort(np.asarray(chosen, np.int64))


@dataclass(frozen=True)
class Constraint:
    """A bound on the metric of a task."""

    task: str
    least: bool
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a metric keeps the bound."""
        return value >= self.bound if self.least else value <= self.bound

    def __str__(self) -> str:
        return f"{self.task} {'>=' if self.least else '<='} {self.bound:g}"


def parse_constraint(text: str, tasks: Sequence[str]) -> Constraint:
    """Read "law >= 0.55" or "loss <= 2". Raises RequestError.

    >>> parse_constraint("law>=0.55", ["law", "health"])
    Constraint(task='law', least=True, bound=0.55)
    """
    found = re.fullmatch(r"\s*(.+?)\s*(>=|<=|≥|≤)\s*([-+.\deE]+)\s*", text)
    if found is None:
        raise RequestError(f"constraint {text!r}: write TASK>=NUMBER or TASK<=NUMBER, such as {tasks[0]}>=0.5")
    task, sign, number = found.groups()
    if task not in tasks:
        raise RequestError(f"constraint {text!r}: no task is named {task!r}{did_you_mean(task, tasks)}")
    try:
        return Constraint(task, sign in (">=", "≥"), float(number))
    except ValueError:
        raise RequestError(f"constraint {text!r}: {number!r} is not a number") from None


def parse_preference(text: str) -> dict[str, float]:
    """Read "law=0.7,health=0.3". Raises RequestError.

    >>> parse_preference("law=0.7, health=0.3")
    {'law': 0.7, 'health': 0.3}
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, mark, number = part.partition("=")
        try:
            if not mark or name.strip() in found:
                raise ValueError
            found[name.strip()] = float(number)
        except ValueError:
            raise RequestError(f"preference {text!r}: write TASK=NUMBER,TASK=NUMBER, each task once") from None
    return found


def preference_vector(preference: Mapping[str, float] | Sequence[float], tasks: Sequence[str]) -> Array:
    """Return preferences (T,) that sum to 1; tasks that a mapping does not name get 0.

    >>> preference_vector({"law": 3}, ["law", "health"]).tolist()
    [1.0, 0.0]

    Raises RequestError for unknown tasks, a wrong number of them, negative or non-finite values, and all zero.
    """
    problems = Problems()
    if isinstance(preference, Mapping):
        for name in preference:
            if name not in tasks:
                problems.add(f"no task is named {name!r}{did_you_mean(name, tasks)}")
        values = np.array([preference.get(task, 0.0) for task in tasks], np.float64)
    else:
        values = np.asarray(preference, np.float64).reshape(-1)
        if len(values) != len(tasks):
            problems.add(f"{len(values)} numbers for {len(tasks)} tasks ({', '.join(tasks)})")
    if not np.isfinite(values).all() or (values < 0).any():
        problems.add(f"{values.tolist()}: each number must be finite and 0 or more")
    elif not values.any():
        problems.add("all numbers are 0; at least one task must be preferred")
    problems.raise_if_any(RequestError, "preference")
    return np.asarray(values / values.sum(), np.float64)


def choose_point(
    values: ArrayLike,
    preference: Mapping[str, float] | Sequence[float],
    tasks: Sequence[str],
    *,
    higher: bool | Sequence[bool] = True,
    by: By = "weighted_sum",
    require: Sequence[Constraint] = (),
) -> int:
    """Return the index of the row of (N, T) that suits a preference best; the first one on ties.

    >>> front = [[1.0, 0.1], [0.6, 0.7], [0.1, 1.0]]
    >>> choose_point(front, {"a": 0.9, "b": 0.1}, ["a", "b"]), choose_point(front, [0.5, 0.5], ["a", "b"])
    (0, 1)

    by="weighted_sum": the largest preference-weighted sum; it reaches only the convex hull of a front.
    by="chebyshev": the smallest of the largest weighted distances to the best value of each task, in units of each
    task's range; it reaches every point. require: only rows that keep these bounds. Raises WorkError where none does,
    naming the closest value of each bound.
    """
    v = _signed(values, higher)
    weights = preference_vector(preference, tasks)
    raw = np.atleast_2d(np.asarray(values, np.float64))
    columns = [list(tasks).index(bound.task) for bound in require]
    allowed = np.isfinite(v).all(axis=1)
    for bound, column in zip(require, columns, strict=True):
        allowed &= raw[:, column] >= bound.bound if bound.least else raw[:, column] <= bound.bound
    if not allowed.any():
        nearest = ", ".join(
            f"{bound} (the front reaches {(raw[:, column].max() if bound.least else raw[:, column].min()):.4g})"
            for bound, column in zip(require, columns, strict=True)
        )
        raise WorkError(f"no point of the front keeps all bounds: {nearest or 'no finite metrics'}; relax one")
    if by == "weighted_sum":
        score = v @ weights
    elif by == "chebyshev":
        finite = v[np.isfinite(v).all(axis=1)]
        width = np.ptp(finite, axis=0)
        away = (finite.max(axis=0) - v) / np.where(width > 0, width, 1) * weights
        score = -(away.max(axis=1) + _AUGMENT * away.sum(axis=1))
    else:
        raise RequestError(f"selection by {by!r} is unknown{did_you_mean(by, ['weighted_sum', 'chebyshev'])}")
    return int(np.where(allowed, score, -np.inf).argmax())


def _signed(values: ArrayLike, higher: bool | Sequence[bool]) -> Array:
    """Return (N, T) with larger better."""
    v = np.atleast_2d(np.asarray(values, np.float64))
    return np.asarray(v * np.where(np.broadcast_to(np.asarray(higher), v.shape[1:]), 1.0, -1.0), np.float64)
