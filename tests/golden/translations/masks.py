"""PCB, EMR, TALL-masks and Consensus: the references' parameters, and checks of masks, rescalers and coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from consilience.merging.memory import merge_state_dicts
from tests.golden.translate import Translation, Untranslated, choose, plain, same

PCB = "duguodong7/pcb-merging"
EMR = "harveyhuang18/EMR_Merging"
TALL = "nik-dim/tall_masks"

Groups = Mapping[str, Mapping[str, Any]]
Parameters = Mapping[str, Any]


def merge(case: Mapping[str, Any], groups: Groups, parameters: Parameters, **more: Any) -> Mapping[str, Any]:
    """Merge the experts of a case again, with further parameters."""
    experts = {name: tensors for name, tensors in groups.items() if name.startswith("expert")}
    return merge_state_dicts(case["method"], groups["base"], experts, **{**parameters, **more})


def per_expert(groups: Groups, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each expert and its auxiliary tensors of one kind."""
    aux = groups.get("aux", {})
    for expert in sorted(name for name in groups if name.startswith("expert")):
        prefix = f"{kind}.{expert}."
        found = {name.removeprefix(prefix): tensor for name, tensor in aux.items() if name.startswith(prefix)}
        if found:
            yield expert, found


def count_wrong(found: Mapping[str, Any], wanted: Mapping[str, Any], case: Mapping[str, Any]) -> int:
    """Return how many entries are beyond the case's tolerance."""
    tolerance = case["tolerance"]
    return sum(
        int((np.abs(found[n] - wanted[n]) > tolerance["atol"] + tolerance["rtol"] * np.abs(wanted[n])).sum())
        for n in wanted
    )


def check_coefficients(
    case: Mapping[str, Any], groups: Groups, parameters: Parameters, merged: Mapping[str, Any]
) -> list[str]:
    """Compare the coefficients of every expert with the published scale maps."""
    problems = []
    for expert, wanted in per_expert(groups, "scale"):
        if wrong := count_wrong(merge(case, groups, parameters, coefficients=expert), wanted, case):
            problems.append(f"scale of {expert}: {wrong} entries off")
    return problems


def check_tasks(
    scale: Callable[[Groups, int], float],
) -> Callable[[Mapping[str, Any], Groups, Parameters, Mapping[str, Any]], list[str]]:
    """Compare every reconstructed task model with what the published masks (and rescalers) give."""

    def check(case: Mapping[str, Any], groups: Groups, parameters: Parameters, merged: Mapping[str, Any]) -> list[str]:
        base, shared = groups["base"], groups["merged"]
        allowed = int(case.get("mask_mismatch_allowed", 0))
        problems = []
        for place, (expert, masks) in enumerate(per_expert(groups, "mask")):
            factor = scale(groups, place)
            wanted = {n: base[n] + factor * masks[n] * (shared[n] - base[n]) for n in masks}
            wrong = count_wrong(merge(case, groups, parameters, task=expert), wanted, case)
            if wrong > allowed:
                problems.append(f"model of {expert}: {wrong} entries off, {allowed} allowed")
        return problems

    return check


def check_consensus(
    case: Mapping[str, Any], groups: Groups, parameters: Parameters, merged: Mapping[str, Any]
) -> list[str]:
    """Compare which weights changed with the published consensus mask; the reference changes the same ones."""
    aux, base, published = groups.get("aux", {}), groups["base"], groups["merged"]
    masks = {n.removeprefix("consensus_mask."): m for n, m in aux.items() if n.startswith("consensus_mask.")}
    allowed = int(case.get("mask_mismatch_allowed", 0))
    wrong = sum(int(((merged[n] != base[n]) != (m & (published[n] != base[n]))).sum()) for n, m in masks.items())
    return [f"consensus mask: {wrong} entries off, {allowed} allowed"] if wrong > allowed else []


def ties_density(value: float | None, experts: int) -> dict[str, Any]:
    """The share that TIES keeps, in per cent; none where it is not used."""
    return {} if value is None else {"density": value / 100}


def one_for_all(value: Any, experts: int) -> dict[str, Any]:
    """PCB's lambda: one number or one per expert."""
    if isinstance(value, list) and len(value) != experts:
        raise Untranslated(f"{len(value)} values of lambda for {experts} experts")
    return {"lambda": value}


MASKS = {
    "tall_mask_lambda": same("tall_mask_lambda"),
    "use_ties": choose("merge", {True: "ties", False: "task_arithmetic"}),
    "ties_k": ties_density,
}

TABLE: Mapping[tuple[str, str], Translation] = {
    ("pcb", PCB): Translation(
        {**plain("pcb_ratio", "clamp_ratio", "inter"), "lambda": one_for_all}, extra=check_coefficients
    ),
    ("emr", EMR): Translation({}, extra=check_tasks(lambda groups, place: float(groups["aux"]["rescaler"][place]))),
    ("tall_mask", TALL): Translation(MASKS, extra=check_tasks(lambda groups, place: 1.0)),
    ("consensus", TALL): Translation(
        {**MASKS, "prun_thre_k": same("k"), "scaling_coefficient": same("alpha")}, extra=check_consensus
    ),
}
