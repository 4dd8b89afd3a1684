"""MAP: surrogates fitted on the stored evaluations, the front of the stored surrogate, the chosen coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from consilience.merging.memory import merge_state_dicts
from consilience.tuning.pareto_front import choose_point, find_front, hypervolume, pareto_mask
from consilience.tuning.pareto_surrogate import fit_surrogate
from tests.golden.translate import Groups, Translation, same, without_effect


def _tasks(groups: Groups) -> list[str]:
    return [f"task {t}" for t in range(groups["aux"]["metric"].shape[1])]


def _merge(case: Mapping[str, Any], groups: Groups, names: Sequence[str], ours: Mapping[str, Any]) -> Mapping[str, Any]:
    """Choose on the front of the stored surrogate, merge by the chosen coefficients."""
    aux, higher = groups["aux"], ours["higher"]
    front = np.flatnonzero(pareto_mask(aux["surrogate"], higher))
    place = choose_point(aux["surrogate"][front], aux["preference"], _tasks(groups), higher=higher)
    chosen = dict(zip(names, aux["candidates"][front[place]].tolist(), strict=True))
    experts = {name: groups[name] for name in names}
    return merge_state_dicts("task_arithmetic", groups["base"], experts, weight=chosen)


def _check(case: Mapping[str, Any], groups: Groups, ours: Mapping[str, Any], merged: Any) -> list[str]:
    aux, higher = groups["aux"], ours["higher"]
    surrogate = fit_surrogate(aux["c"], aux["metric"], activation=ours["activation"])
    problems = []
    limits = case["tolerance"]
    if not np.allclose(surrogate.parameters, aux["params"], rtol=limits["rtol"], atol=limits["atol"]):
        problems.append(f"parameters are off by {np.abs(surrogate.parameters - aux['params']).max():.3g}")
    mask = pareto_mask(aux["surrogate"], higher)
    if not np.array_equal(mask, aux["pareto_mask"].astype(bool)):
        problems.append("the front has other points")
    front = aux["surrogate"][mask]
    chosen = choose_point(front, aux["preference"], _tasks(groups), higher=higher)
    if not np.array_equal(aux["candidates"][mask][chosen], aux["selected_c"]):
        problems.append(f"coefficients {aux['candidates'][mask][chosen].tolist()} are chosen")
    if "hypervolume_grid" in case["params"]:
        found = hypervolume(surrogate.predict(find_front(surrogate)), [0, 0])
        if found < 0.999 * case["params"]["hypervolume_grid"]:
            problems.append(f"the front found has hypervolume {found:.6f}")
    return problems


TABLE: Mapping[tuple[str, str], Translation] = {
    ("map-pareto", "luli-git/MAP"): Translation(
        {
            "activation": same("activation"),
            "higher_is_better": same("higher"),
            "n_tasks": without_effect,
            "n_params": without_effect,
            "nsga3": without_effect,  # their random search; fronts are compared by hypervolume
            "hypervolume_grid": without_effect,
            "hypervolume_nsga3_bounds_pm3": without_effect,
        },
        merge=_merge,
        extra=_check,
    ),
}
