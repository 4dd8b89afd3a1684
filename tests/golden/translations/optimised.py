"""Methods that minimise an objective: WUDI, OptMerge, DOGE. Objectives are judged first, within 1 %."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from consilience.merging.memory import merge_state_dicts
from tests.golden.translate import Groups, Rule, Translation, Untranslated, fixed, same

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"init": "sum", "optimizer": "Adam", "momentum": None, "center_by_mean": True},
    "lora": {"init": "mean", "optimizer": "SGD", "momentum": 0.9, "center_by_mean": False},
    "modality": {"init": "mean", "optimizer": "SGD", "momentum": 0.9},
}


def _only(names: list[str], experts: int) -> dict[str, Any]:
    """Exactly these matrices are merged."""
    return {"include": f"(?:{'|'.join(re.escape(name) for name in names)})$", "exclude": ""}


def _excluded(patterns: list[str], experts: int) -> dict[str, Any]:
    return {"exclude": "|".join(f"(?:{pattern})" for pattern in patterns)}


def _variant(value: str, experts: int) -> dict[str, Any]:
    return {"variant": value.split()[0]}


def _rank(value: str, experts: int) -> dict[str, Any]:
    """What the variants keep: 1 / T of the rank, or a fifth (modality)."""
    if not value.startswith(("int(min(m,n)/T)", "int(min(m,n)/5)")):
        raise Untranslated(f"rank: {value!r}")
    return {}


def _implied(name: str) -> Rule:
    """Our variants imply the value; `objectives` compares it with that of the case's variant."""

    def rule(value: Any, experts: int) -> dict[str, Any]:
        if all(settings.get(name, value) != value for settings in VARIANTS.values()):
            raise Untranslated(f"{name}: {value!r}")
        return {}

    return rule


def objectives(case: Mapping[str, Any], groups: Groups, parameters: Mapping[str, Any], merged: Any) -> list[str]:
    """Compare the objective before and after, per tensor."""
    told = _facts(case["method"], groups, parameters)
    problems = []
    for name, expected in case["objective"].items():
        ours = told.get(name, {}).get("objective", {"before": np.nan, "after": np.nan})
        for when, value in (("before", expected["initial"]), ("after", expected["final"])):
            if not abs(ours[when] - value) <= 0.01 * abs(value):
                problems.append(f"tensor {name!r}: objective {when} is {ours[when]:.6g}, not {value:.6g}")
    return problems


def _facts(method: str, groups: Groups, parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    told: dict[str, dict[str, Any]] = {}
    experts = {name: tensors for name, tensors in groups.items() if name.startswith("expert")}
    merge_state_dicts(method, groups.get("base"), experts, facts=told, **parameters)
    return told


def _optmerge(case: Mapping[str, Any], groups: Groups, parameters: Mapping[str, Any], merged: Any) -> list[str]:
    implied = VARIANTS[parameters["variant"]]
    wrong = [f"{name} {case['params'][name]!r}" for name, value in implied.items() if case["params"][name] != value]
    return [f"variant {parameters['variant']!r} has another {found}" for found in wrong] + objectives(
        case, groups, parameters, merged
    )


def _doge(case: Mapping[str, Any], groups: Groups, parameters: Mapping[str, Any], merged: Any) -> list[str]:
    """Also: the merged values within their own tolerance, and the common change within `tolerance_delta`."""
    import torch

    from consilience.merging.methods.doge import common_change, shared_subspace

    problems = objectives(case, groups, parameters, merged)
    experts = [groups[name] for name in sorted(name for name in groups if name.startswith("expert"))]
    for name in case["params"]["merged_keys"]:
        taus = torch.stack([torch.from_numpy(expert[name] - groups["base"][name]) for expert in experts])
        coefficients = [parameters["eta"] / float(tau.norm()) for tau in taus]
        rank = min(taus[0].shape)
        shared = shared_subspace(taus, rank // len(taus), rank // parameters["subspace"])
        change, _, _ = common_change(taus, coefficients, shared, parameters["learning_rate"], parameters["steps"])
        for what, ours, theirs, tolerance in (
            ("merged", merged[name], groups["merged"][name], case["tolerance"]),
            ("change", change.numpy(), groups["aux"][f"delta.{name}"], case["tolerance_delta"]),
        ):
            off = float((np.abs(ours - theirs) - tolerance["rtol"] * np.abs(theirs)).max())
            if off > tolerance["atol"]:
                problems.append(f"tensor {name!r}: {what} is off by {off:.3g}")
    return problems


ADAM = {"optimizer": fixed("Adam"), "betas": fixed([0.9, 0.999]), "eps": fixed(1e-8)}

TABLE: Mapping[tuple[str, str], Translation] = {
    ("wudi", "nathanielyvo/WUDI-Merging"): Translation(
        {
            **ADAM,
            "iter_num": same("steps"),
            "lr": same("learning_rate"),
            "weight_decay": fixed(0),
            "init": fixed("sum of task vectors"),
            "scaling_coef": same("lambda"),
            "merged_keys": _only,
        },
        extra=objectives,
    ),
    ("optmerge", "WalkerWorldPeace/MLLMerging"): Translation(
        {
            "variant": _variant,
            "iter_num": same("steps"),
            "rank": _rank,
            "init": _implied("init"),
            "optimizer": _implied("optimizer"),
            "lr": same("learning_rate"),
            "momentum": _implied("momentum"),
            "center_by_mean": _implied("center_by_mean"),
            "scaling_coefficient": same("lambda"),
            "lamda": same("lambda"),
            "exclude_param_names_regex": _excluded,
        },
        extra=_optmerge,
    ),
    ("doge", "tanganke/fusion_bench"): Translation(
        {
            **ADAM,
            "subspace": same("subspace"),
            "K": lambda value, experts: {"density": value / 100},
            "lamda": same("eta"),
            "iter_num": same("steps"),
            "lr": same("learning_rate"),
            "init": fixed("Delta=0"),
            "merged_keys": _only,
        },
        extra=_doge,
    ),
}
