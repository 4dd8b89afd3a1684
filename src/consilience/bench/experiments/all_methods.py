"""Every merging method on the same experts: coefficients chosen on dev, measured on test against the uniform average.

A method that cannot take these experts stays in the table with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consilience.bench.experiments.artefacts import Artefacts, Runnable, gather_artefacts
from consilience.bench.experiments.scores import Paired, Scores, compare
from consilience.bench.experiments.workbench import Workbench
from consilience.errors import ConsilienceError
from consilience.merging.method import Method, find_method, method_names

__all__ = ["GRIDS", "MethodRow", "compare_methods"]

SCALES = (0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "doge": {"eta": (0.07, 0.3, 1.0)},
    "ties": {"lambda": (0.3, 0.5, 0.7, 1.0, 1.5, 2.0)},
    "pcb": {"lambda": (0.8, 1.0, 1.2, 1.5, 1.8, 2.2)},
    "sens": {"lambda": (0.2, 0.3, 0.5, 0.7, 1.0)},
}
"""What is tried where the scale of a method is not called lambda or alpha, or has a range of its own."""

FIXED: Mapping[str, Mapping[str, Any]] = {
    "optmerge": {"variant": "full", "learning_rate_unit": "rms"},
    "wudi": {"learning_rate": 0.02, "learning_rate_unit": "rms", "rest": "mean"},
}
"""Settings for experts of any size of change: the published rates are absolute."""

UNFIT = {
    "passthrough": "takes one model",
    "mwa": "weighs the checkpoints of one run by a recorded metric",
}


@dataclass(frozen=True)
class MethodRow:
    """One line of the comparison; `reason` says why there is none."""

    method: str
    parameters: Mapping[str, Any]
    trials: int = 0
    scores: Scores | None = None
    against: Paired | None = None
    seconds: float | None = None
    reason: str = ""


def compare_methods(
    workbench: Workbench,
    methods: Sequence[str] | None = None,
    *,
    scales: Sequence[float] = SCALES,
    grids: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
    examples: int = 64,
    statistics: Mapping[str, Any] | None = None,
    told: Callable[[MethodRow], None] = lambda row: None,
) -> list[MethodRow]:
    """Return one row per method (all of them): scores on test, the difference to the uniform average, merge seconds.

    >>> import tempfile
    >>> from consilience.bench.experiments.images import DigitViews
    >>> bench = Workbench(DigitViews("mild"), cache=tempfile.mkdtemp(), tasks=["upright", "inverted"])
    >>> rows = compare_methods(bench, ["linear", "slerp"])
    >>> [row.reason or "measured" for row in rows]
    ['measured', 'takes at most 1 expert, there are 2']

    A scale (lambda, alpha) is tried at `scales`, unless `GRIDS` or `grids` say other values; the first of the highest
    mean on dev is kept. Other parameters keep their defaults (`FIXED` names the exceptions). Artefacts (Fisher
    diagonals, Gram matrices, ...) are gathered of `examples` training examples per expert, with the settings
    `statistics`, where the family's models can be run. Methods that rebuild each expert from one vector and a mask are
    measured as one model per task. told: called after every row.
    """
    uniform = workbench.scores(workbench.merge("linear"))
    gathered: dict[str, Artefacts | str] = {}
    rows = []
    for name in method_names() if methods is None else methods:
        method = find_method(name)
        reason = UNFIT.get(name) or _too_many(method, len(workbench.tasks))
        if reason:
            row = MethodRow(name, {}, reason=reason)
        else:
            try:
                fixed = _fixed(workbench, method, gathered, examples, statistics or {})
                grid = {**GRIDS, **(grids or {})}.get(name, _scale(method, scales))
                row = _measured(workbench, method, grid, fixed, uniform)
            except ConsilienceError as error:
                row = MethodRow(name, {}, reason=" ".join(str(error).split()))
        rows.append(row)
        told(row)
    return rows


def _too_many(method: Method, experts: int) -> str:
    if method.max_experts is not None and experts > method.max_experts:
        return f"takes at most {method.max_experts} expert{'s' if method.max_experts > 1 else ''}, there are {experts}"
    return ""


def _fixed(
    workbench: Workbench,
    method: Method,
    gathered: dict[str, Artefacts | str],
    examples: int,
    statistics: Mapping[str, Any],
) -> dict[str, Any]:
    """Return settings and artefacts of a method; artefacts are gathered once for all methods."""
    fixed: dict[str, Any] = dict(FIXED.get(method.name, {}))
    if "distance" in method.parameters:
        fixed["distance"] = _gathered(workbench, "logit_distance", gathered, examples, statistics).distance
    if method.aux:
        fixed["aux"] = {
            kind: _gathered(workbench, kind, gathered, examples, statistics).aux[kind] for kind in method.aux
        }
    return fixed


def _gathered(
    workbench: Workbench,
    kind: str,
    gathered: dict[str, Artefacts | str],
    examples: int,
    statistics: Mapping[str, Any],
) -> Artefacts:
    if kind not in gathered:
        if not isinstance(workbench.family, Runnable):
            gathered[kind] = f"needs {kind}, and the models of this family cannot be run one by one"
        else:
            try:
                gathered[kind] = gather_artefacts(workbench, [kind], examples=examples, **statistics)
            except ConsilienceError as error:
                gathered[kind] = " ".join(f"{kind}: {error}".split())
    found = gathered[kind]
    if isinstance(found, str):
        raise ConsilienceError(found)
    return found


def _scale(method: Method, scales: Sequence[float]) -> Mapping[str, Sequence[float]]:
    name = next((name for name in ("lambda", "alpha") if name in method.parameters), None)
    return {name: scales} if name else {}


def _measured(
    workbench: Workbench,
    method: Method,
    grid: Mapping[str, Sequence[Any]],
    fixed: Mapping[str, Any],
    uniform: Scores,
) -> MethodRow:
    if any(parameter.chosen for parameter in method.parameters.values()) and "task" in method.parameters:
        scores = _one_per_task(workbench, method, fixed)
        return MethodRow(method.name, {"task": "each"}, 0, scores, compare(scores, uniform))
    if not grid:
        started = time.perf_counter()
        state = workbench.merge(method.name, **fixed)
        seconds = time.perf_counter() - started
        scores = workbench.scores(state)
        return MethodRow(method.name, {}, 0, scores, compare(scores, uniform), seconds)
    tuned = workbench.tune(method.name, grid, **fixed)
    trials = len(tuned.trials)
    chosen = {name: tuned.parameters[name] for name in grid}
    scores = workbench.scores(tuned.state)
    return MethodRow(method.name, chosen, trials, scores, compare(scores, uniform), tuned.merge_seconds / trials)


def _one_per_task(workbench: Workbench, method: Method, fixed: Mapping[str, Any]) -> Scores:
    found = {}
    for task in workbench.tasks:
        state = workbench.merge(method.name, task=task, **fixed)
        found[task] = workbench.scores(state, tasks=[task]).by_example[task]
    return Scores(found)
