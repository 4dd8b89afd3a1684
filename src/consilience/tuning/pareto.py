"""Pareto fronts of scaling coefficients: a few real evaluations, surrogates, the front, one point chosen, a recipe.

    theta(c) = theta_0 + sum_i c_i (theta_i - theta_0)

Source: MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation, ICLR 2025
(arXiv 2406.07529).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import stream_key
from consilience.core.records import read_record, write_record
from consilience.errors import Problems, RequestError, WorkError, did_you_mean
from consilience.tuning.pareto_bayes import propose
from consilience.tuning.pareto_evaluations import Evaluate, Evaluations
from consilience.tuning.pareto_front import (
    By,
    choose_point,
    find_front,
    pareto_mask,
    parse_constraint,
    preference_vector,
    spread,
)
from consilience.tuning.pareto_nested import search_nested
from consilience.tuning.pareto_sampling import sample_coefficients
from consilience.tuning.pareto_surrogate import ACTIVATIONS, Degree, Surrogate, fit_surrogate, parameter_count

if TYPE_CHECKING:
    from consilience.core.jobs import Job

__all__ = ["ParetoFront", "ParetoPoint", "Search", "default_budget", "search_pareto"]

Array = NDArray[np.float64]
Search = Literal["map", "bayesian", "nested"]

_SEARCHES: tuple[Search, ...] = ("map", "bayesian", "nested")
_VERSION = 1
_ROUNDS = 2  # times that the Bayesian variant chooses new points
_FITTED_ON = (0.0, 1.0)


@dataclass(frozen=True)
class ParetoPoint:
    """One set of coefficients: what the surrogates predicted, what was measured, and metrics on held-out data.

    `held_out` has (value, low, high) per task, the bounds of a 95 % interval; None where nothing was measured there.
    """

    coefficients: tuple[float, ...]
    predicted: tuple[float, ...] | None = None
    measured: tuple[float, ...] | None = None
    held_out: tuple[tuple[float, float, float], ...] | None = None


@dataclass(frozen=True)
class ParetoFront:
    """The result: the front, everything that was evaluated for it, and how.

    `points` are sorted by the first task's metric, best first; those that turned out to be dominated when they were
    measured are in `dominated`. `evaluations` counts real evaluations: `search` (fitting) and `front` (measuring the
    points that the surrogates proposed). `surrogate` is None for the nested search, whose `stages` say what was merged.
    `references` are held-out metrics of other models, such as the base and each expert alone.
    """

    experts: tuple[str, ...]
    tasks: tuple[str, ...]
    higher: tuple[bool, ...]
    search: Search
    points: tuple[ParetoPoint, ...]
    dominated: tuple[ParetoPoint, ...]
    samples: Array = field(repr=False)
    metrics: Array = field(repr=False)
    evaluations: Mapping[str, int]
    surrogate: Surrogate | None = None
    stages: tuple[Mapping[str, Any], ...] = ()
    notices: tuple[str, ...] = ()
    bounds: tuple[float, float] = _FITTED_ON
    seed: int = 0
    references: Mapping[str, tuple[tuple[float, float, float], ...]] = field(default_factory=dict)

    def values(self) -> Array:
        """Return the metrics (N, T) of `points`: measured where they all were, else predicted."""
        measured = all(point.measured is not None for point in self.points)
        return np.array([point.measured if measured else point.predicted for point in self.points], np.float64)

    def select(
        self,
        preference: Mapping[str, float] | Sequence[float] | None = None,
        *,
        by: By = "weighted_sum",
        require: Sequence[str] = (),
    ) -> ParetoPoint:
        """Return the point that suits a preference best, of those that keep all bounds.

        preference: task -> weight (missing tasks 0), or one weight per task; None: all alike. by: "weighted_sum", or
        "chebyshev", which also reaches the dents of a front. require: "law>=0.55" or "loss<=2", any number.

        Raises RequestError for unknown tasks and weights that are negative, not finite or all 0, WorkError where no
        point keeps the bounds.
        """
        bounds = [parse_constraint(text, self.tasks) for text in require]
        weights = [1.0] * len(self.tasks) if preference is None else preference
        values = self.values()
        return self.points[choose_point(values, weights, self.tasks, higher=self.higher, by=by, require=bounds)]

    def recipe(self, point: ParetoPoint, *, base: str, experts: Mapping[str, str]) -> dict[str, Any]:
        """Return the recipe of a point as plain data: `task_arithmetic` with one weight per expert.

        experts: name -> model. Raises RequestError where the names are not those of the front.
        """
        if set(experts) != set(self.experts):
            raise RequestError(f"experts {sorted(experts)} are not those of the front, {sorted(self.experts)}")
        weights = dict(zip(self.experts, point.coefficients, strict=True))
        return {
            "version": 1,
            "method": "task_arithmetic",
            "base": base,
            "experts": dict(experts),
            "parameters": {"weight": {name: weights[name] for name in experts}},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        return {
            "experts": list(self.experts),
            "tasks": list(self.tasks),
            "higher_is_better": list(self.higher),
            "search": self.search,
            "bounds": list(self.bounds),
            "seed": self.seed,
            "evaluations": dict(self.evaluations),
            "points": [asdict(point) for point in self.points],
            "dominated": [asdict(point) for point in self.dominated],
            "samples": self.samples.tolist(),
            "metrics": [[v if np.isfinite(v) else None for v in row] for row in self.metrics.tolist()],
            "surrogate": None if self.surrogate is None else self.surrogate.to_dict(),
            "stages": [dict(stage) for stage in self.stages],
            "notices": list(self.notices),
            "references": {name: [list(part) for part in held] for name, held in self.references.items()},
        }

    def write(self, path: str | Path) -> None:
        """Write the front as JSON, headed by its format and version."""
        write_record(Path(path), "pareto", _VERSION, self.to_dict())

    @staticmethod
    def read(path: str | Path) -> ParetoFront:
        """Read what `write` wrote; raises RequestError for anything else."""
        content = read_record(Path(path), "pareto", _VERSION)
        try:
            fitted = content["surrogate"]
            return ParetoFront(
                tuple(content["experts"]),
                tuple(content["tasks"]),
                tuple(content["higher_is_better"]),
                content["search"],
                tuple(_point(entry) for entry in content["points"]),
                tuple(_point(entry) for entry in content["dominated"]),
                np.array(content["samples"], np.float64),
                np.array([[np.nan if v is None else v for v in row] for row in content["metrics"]], np.float64),
                content["evaluations"],
                None if fitted is None else Surrogate.from_dict(fitted),
                tuple(content["stages"]),
                tuple(content["notices"]),
                tuple(content["bounds"]),
                content["seed"],
                {name: tuple(tuple(part) for part in held) for name, held in content["references"].items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{path}: incomplete or damaged record of a front ({error!r})") from error


def _point(entry: Mapping[str, Any]) -> ParetoPoint:
    predicted, measured = (None if entry[key] is None else tuple(entry[key]) for key in ("predicted", "measured"))
    held = None if entry["held_out"] is None else tuple(tuple(part) for part in entry["held_out"])
    return ParetoPoint(tuple(entry["coefficients"]), predicted, measured, held)


def default_budget(experts: int) -> int:
    """Return twice the number of a quadratic surrogate's parameters: (E+1)(E+2).

    >>> default_budget(2)
    12
    """
    return 2 * parameter_count(experts)


def search_pareto(
    evaluate: Evaluate,
    experts: Sequence[str],
    tasks: Sequence[str],
    *,
    budget: int | None = None,
    search: Search = "map",
    front: int = 12,
    activation: str | Sequence[str] = "sigmoid",
    higher: bool | Sequence[bool] = True,
    bounds: tuple[float, float] = _FITTED_ON,
    degree: Degree = 2,
    preference: Mapping[str, float] | Sequence[float] | None = None,
    seed: int = 0,
    job: Job | None = None,
) -> ParetoFront:
    """Find a Pareto front of coefficients with a counted number of real evaluations.

    >>> def evaluate(c):  # two experts, each good at its own task, the other one in the way
    ...     return [0.2 + 0.7 * c[0] - 0.3 * c[1] ** 2, 0.2 + 0.7 * c[1] - 0.3 * c[0] ** 2]
    >>> found = search_pareto(evaluate, ["a", "b"], ["law", "health"], budget=12, front=5)
    >>> dict(found.evaluations), len(found.samples)
    ({'search': 12, 'front': 5}, 12)
    >>> liked = found.select({"law": 0.9, "health": 0.1})
    >>> liked.coefficients[0] > liked.coefficients[1]
    True

    evaluate: coefficients float64 (E,) -> one metric per task; nothing that is held out. budget: evaluations of the
    search (default (E+1)(E+2)). front: at most so many points of the front are evaluated as well, 0 for none: then
    `measured` is None. search: "map" samples once; "bayesian" (2 to 6 experts) spends half of the budget where the
    surrogate errs; "nested" merges two models at a time with `preference` (one expert per task). activation: sigmoid
    for shares in [0, 1], softplus for losses, identity; one, or one per task. higher: whether more is better. bounds:
    of the front's coefficients; beyond [0, 1], where the samples are, the surrogates extrapolate. degree=1 fits linear
    surrogates. job: its journal keeps evaluations, so that a killed search resumes.

    The same arguments find the same points. Raises RequestError listing all problems before the first evaluation.
    """
    count = len(experts)
    chosen = default_budget(count) if budget is None else budget
    activations = (activation,) * len(tasks) if isinstance(activation, str) else tuple(activation)
    directions = (higher,) * len(tasks) if isinstance(higher, bool) else tuple(higher)
    problems = Problems()
    wanted = parameter_count(count, degree)
    if not experts or not tasks or len(set(experts)) < count or len(set(tasks)) < len(tasks):
        problems.add(f"experts {list(experts)} and tasks {list(tasks)}: one or more of each, with distinct names")
    if search not in _SEARCHES:
        problems.add(f"search {search!r} is unknown{did_you_mean(search, _SEARCHES)}")
    if search != "nested" and chosen < wanted:
        problems.add(
            f"budget {chosen}: the surrogates of {count} experts have {wanted} parameters; use {wanted} or more"
        )
    if search == "nested" and (count != len(tasks) or count < 2):
        problems.add(f"nested search needs one expert per task and at least two, not {count} for {len(tasks)} tasks")
    if len(activations) != len(tasks) or len(directions) != len(tasks):
        problems.add(f"{len(activations)} activations and {len(directions)} directions for {len(tasks)} tasks")
    problems.extend(
        f"activation {name!r} is unknown{did_you_mean(name, ACTIVATIONS)}"
        for name in activations
        if name not in ACTIVATIONS
    )
    if not bounds[0] < bounds[1] or front < 0:
        problems.add(f"bounds {bounds} and front {front}: a lower bound below the upper one, and 0 points or more")
    problems.raise_if_any(RequestError, "pareto")
    weights = preference_vector([1.0] * len(tasks) if preference is None else preference, tasks)
    evaluations = Evaluations(evaluate, len(tasks), chosen, job)
    surrogate, stages, notices = None, list[dict[str, Any]](), list[str]()
    if search == "nested":
        found, stages, notices = search_nested(evaluations, experts, weights, activations, directions, seed=seed)
        predicted: Array | None = None
    else:
        first = chosen if search == "map" else max(wanted, count, (chosen + 1) // 2)
        evaluations(sample_coefficients(count, first, seed=seed))
        if search == "bayesian":
            _refine(evaluations, activations, degree, seed)
        surrogate = fit_surrogate(
            evaluations.points, evaluations.metrics, activation=activations, degree=degree, names=tasks
        )
        notices += surrogate.notices
        found = find_front(surrogate, higher=directions, bounds=bounds, seed=seed)
        predicted = surrogate.predict(found)
    if bounds[0] < _FITTED_ON[0] or bounds[1] > _FITTED_ON[1]:
        notices.append(f"bounds {list(bounds)} reach beyond the samples in [0, 1]: predictions there are extrapolated")
    searched = evaluations.used
    points, beaten = _measure(evaluations, found, predicted, front, directions)
    return ParetoFront(
        tuple(experts),
        tuple(tasks),
        directions,
        search,
        points,
        beaten,
        evaluations.points[:searched],
        evaluations.metrics[:searched],
        {"search": searched, "front": evaluations.used - searched},
        surrogate,
        tuple(stages),
        tuple(notices),
        bounds,
        seed,
    )


def _refine(evaluations: Evaluations, activations: Sequence[str], degree: Degree, seed: int) -> None:
    """Spend the rest of the budget in rounds; in a round every task proposes its share of the points."""
    random = np.random.Generator(np.random.Philox(stream_key(seed, "pareto bayesian")))
    for rounds in range(_ROUNDS, 0, -1):
        points, metrics = evaluations.points, evaluations.metrics
        usable = np.isfinite(metrics).all(axis=1)
        surrogate = fit_surrogate(points, metrics, activation=activations, degree=degree)
        errors = (surrogate.predict(points[usable]) - metrics[usable]) ** 2
        new = (evaluations.budget - evaluations.used) // rounds
        for share, error in zip(np.array_split(np.arange(new), errors.shape[1]), errors.T, strict=True):
            if len(share):
                evaluations(propose(points[usable], error, len(share), random))


def _measure(
    evaluations: Evaluations, found: Array, predicted: Array | None, front: int, higher: Sequence[bool]
) -> tuple[tuple[ParetoPoint, ...], tuple[ParetoPoint, ...]]:
    """Evaluate up to `front` points that lie far apart; return those that are not dominated, and the others."""
    told = [None] * len(found) if predicted is None else [tuple(row) for row in predicted.tolist()]
    points = [ParetoPoint(tuple(c), p) for c, p in zip(found.tolist(), told, strict=True)]
    if not front:
        return tuple(points), ()
    kept = spread(found if predicted is None else predicted * np.where(higher, 1, -1), front)
    evaluations.budget = evaluations.used + len(kept)
    measured = evaluations(found[kept])
    best = pareto_mask(measured, higher)
    if not best.any():
        raise WorkError(f"all {len(kept)} points of the front were NaN or infinite when they were measured")
    order = np.argsort(-measured[:, 0] * (1 if higher[0] else -1), kind="stable")
    done = [replace(points[k], measured=tuple(row)) for k, row in zip(kept, measured.tolist(), strict=True)]
    return tuple(done[i] for i in order if best[i]), tuple(done[i] for i in order if not best[i])
