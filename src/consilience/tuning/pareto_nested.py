"""Many experts two at a time: the number of evaluations grows with the number of experts, not with its square.

Source: the nested variant of MAP, ICLR 2025 (arXiv 2406.07529).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RequestError
from consilience.tuning.pareto_evaluations import Evaluations
from consilience.tuning.pareto_front import choose_point, find_front
from consilience.tuning.pareto_sampling import sample_coefficients
from consilience.tuning.pareto_surrogate import fit_surrogate, parameter_count

__all__ = ["least_budget", "search_nested"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Member:
    """A model of one or several experts: its name, its tasks, its coefficients, its metric."""

    name: str
    tasks: tuple[int, ...]
    vector: Array
    metric: float


def least_budget(experts: int) -> int:
    """Return the fewest evaluations: every expert alone, and four new points for each of the merges.

    >>> least_budget(4)
    16
    """
    return experts + (experts - 1) * (parameter_count(2) - 2)


def search_nested(
    evaluations: Evaluations,
    names: Sequence[str],
    preference: Array,
    activations: Sequence[str],
    higher: Sequence[bool],
    *,
    seed: int = 0,
) -> tuple[Array, list[dict[str, Any]], list[str]]:
    """Merge the two models with the closest metrics until one is left; return its front, the stages and notices.

    The front is (N, E): coefficients of the original experts. Expert i belongs to task i. The whole budget of
    `evaluations` is used, evenly over the merges after every expert was evaluated alone. The objective of a member is
    the preference-weighted mean of the metrics of the tasks it contains.

    Raises RequestError for a budget below `least_budget` and for tasks of different kinds (accuracy beside loss),
    which have no common mean.
    """
    count = len(names)
    if evaluations.budget < least_budget(count):
        raise RequestError(
            f"nested search of {count} experts needs {least_budget(count)} evaluations or more, not "
            f"{evaluations.budget}; raise the budget"
        )
    if len(set(activations)) > 1 or len(set(higher)) > 1:
        raise RequestError("nested search averages metrics: all tasks must have one activation and one direction")
    weights = np.maximum(preference, 1e-12)
    alone = evaluations(np.eye(count))
    members = [_Member(name, (i,), np.eye(count)[i], float(alone[i, i])) for i, name in enumerate(names)]
    stages: list[dict[str, Any]] = []
    notices: list[str] = []
    points = np.eye(count)

    def objective(metrics: Array, tasks: tuple[int, ...]) -> Array:
        chosen = weights[list(tasks)]
        return np.asarray(metrics[:, list(tasks)] @ (chosen / chosen.sum()), np.float64)

    while len(members) > 1:
        pair = min(combinations(range(len(members)), 2), key=lambda p: abs(members[p[0]].metric - members[p[1]].metric))
        first, second = (members[i] for i in pair)
        vectors = np.stack([first.vector, second.vector])
        new = (evaluations.budget - evaluations.used) // (len(members) - 1)
        corners = sum(not evaluations.known(vector) for vector in vectors)
        local = sample_coefficients(2, new + 2 - corners, seed=seed + len(stages))
        metrics = evaluations(local @ vectors)
        values = np.stack([objective(metrics, member.tasks) for member in (first, second)], axis=1)
        both = [first.name, second.name]
        surrogate = fit_surrogate(local, values, activation=activations[0], names=both)
        notices += [f"{' + '.join(both)}: {notice}" for notice in surrogate.notices]
        found = find_front(surrogate, higher=higher[0], seed=seed + len(stages))
        predicted = surrogate.predict(found)
        shares = [float(weights[list(member.tasks)].sum()) for member in (first, second)]
        chosen = choose_point(predicted, shares, both, higher=higher[0])
        points = found @ vectors
        tasks = first.tasks + second.tasks
        metric = float(predicted[chosen] @ (np.array(shares) / sum(shares)))
        stages.append(
            {
                "merged": both,
                "evaluations": len(local) - 2 + corners,
                "r2": list(surrogate.r2),
                "coefficients": found[chosen].tolist(),
                "predicted": predicted[chosen].tolist(),
            }
        )
        members = [member for i, member in enumerate(members) if i not in pair]
        members.append(_Member("+".join(both), tasks, points[chosen], metric))
    return points, stages, notices
