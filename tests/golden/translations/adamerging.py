"""AdaMerging: the learnt coefficients and the entropies within 0.1 %, beside the merged tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from consilience.tuning.adamerging import adamerging
from consilience.tuning.learning import Learned
from tests.golden.translate import Groups, Translation, choose, fixed, same, without_effect
from tests.golden.translations.frank_wolfe import Toy


def _run(groups: Groups, names: Sequence[str], ours: Mapping[str, Any]) -> Learned:
    aux = groups["aux"]
    base, *experts = ({k: torch.from_numpy(v) for k, v in groups[name].items()} for name in ("base", *names))
    models = {name: Toy(name, aux[f"head{i}"]) for i, name in enumerate(names)}
    inputs = {name: [(x, 0) for x in aux[f"x{i}"]] for i, name in enumerate(names)}
    count = len(aux["x0"])
    return adamerging(
        base, dict(zip(names, experts, strict=True)), models, inputs, batch=count, batches=1, tolerance=None, **ours
    )


def _merge(case: Mapping[str, Any], groups: Groups, names: Sequence[str], ours: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value.numpy() for name, value in _run(groups, names, ours).state().items()}


def _check(case: Mapping[str, Any], groups: Groups, ours: Mapping[str, Any], merged: Any) -> list[str]:
    names = sorted(name for name in groups if name.startswith("expert"))
    found = _run(groups, names, ours)
    blocks = found.composition.blocks
    order = blocks if len(blocks) == 1 else sorted(blocks, key=lambda name: (name.split(".dense.")[0], "bias" in name))
    ours_values = np.stack([found.values.numpy()[:, blocks.index(block)] for block in order])
    problems = []
    limits = case["tolerance"]
    if not np.allclose(ours_values, groups["aux"]["lambda"], rtol=limits["rtol"], atol=limits["atol"]):
        problems.append(f"coefficients are off by {np.abs(ours_values - groups['aux']['lambda']).max():.3g}")
    for what, facts in (("initial", found.facts["start"]), ("final", found.facts["end"])):
        if abs(facts["entropy"] / case["objective"][what] - 1) > 1e-3:
            problems.append(f"{what} entropy {facts['entropy']:.6g}, not {case['objective'][what]:.6g}")
    return problems


TABLE: Mapping[tuple[str, str], Translation] = {
    ("adamerging", "EnnengYang/AdaMerging"): Translation(
        {
            "granularity": choose(
                "granularity", {"task": "model", "layer (one coefficient per named tensor and task)": "tensor"}
            ),
            "plusplus": choose("vectors", {True: "ties", False: "difference"}),
            "ties_K": lambda value, experts: {"density": value / 100} if value else {},
            "prior": same("start"),
            "clamp": fixed([0, 1]),
            "optimizer": fixed("Adam"),
            "lr": same("learning_rate"),
            "steps": same("steps"),
            "objective": without_effect,
        },
        merge=_merge,
        extra=_check,
    ),
}
