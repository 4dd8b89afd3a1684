"""aTLAS: composition by given coefficients, by blocks and by groups, and coefficients learnt from zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilience.tuning.atlas import atlas
from consilience.tuning.composition import Composition
from tests.golden.translate import Groups, Translation, fixed, same, without_effect
from tests.golden.translations.frank_wolfe import PARTS, Toy


class Tanh(Toy):
    """The network of the learnt case: tanh between two layers, a frozen head."""

    def __init__(self, name: str, head: Any) -> None:
        super().__init__(name, head)
        hidden = head.shape[1]
        self.module = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, hidden))
        self.inner = {
            f"{2 * layer}.{part}": f"encoder.layer.{layer}.dense.{part}" for layer in (0, 1) for part in PARTS
        }
        self.names = self.inner


def _states(groups: Groups, names: Sequence[str]) -> list[dict[str, Tensor]]:
    return [{k: torch.from_numpy(v) for k, v in groups[name].items()} for name in ("base", *names)]


def _learn(groups: Groups, names: Sequence[str], ours: Mapping[str, Any]) -> tuple[Composition, Tensor]:
    """Return the composition and its coefficients: those given, or those learnt from the examples."""
    aux, order = groups["aux"], ours["order"]
    base, *states = _states(groups, names)
    experts = dict(zip(names, states, strict=True))
    if "steps" in ours:
        tasks = [f"t{i}" for i in range(len(names))]
        models = {task: Tanh(task, aux[f"head.{i}"]) for i, task in enumerate(tasks)}
        given = {t: list(zip(aux[f"x.{i}"], aux[f"y.{i}"].tolist(), strict=True)) for i, t in enumerate(tasks)}
        options = {name: value for name, value in ours.items() if name != "order"}
        count = sum(map(len, given.values()))
        found = atlas(base, experts, models, given, tensors=order, batch=count, every=options["steps"], **options)
        return found.composition, found.values
    coefficients = torch.from_numpy(aux["coef"])
    if coefficients.ndim == 2:
        return Composition(base, experts, tensors=order), coefficients
    two = [place for place, name in enumerate(order) if base[name].ndim == 2]
    composition = Composition(base, experts, tensors=[order[place] for place in two], groups=coefficients.shape[2])
    for name in composition.tensors:
        composition.partition[name] = torch.from_numpy(aux[f"partition.{name}"]).reshape(-1).long()
    return composition, coefficients[:, two].flatten(1)


def _merge(case: Mapping[str, Any], groups: Groups, names: Sequence[str], ours: Mapping[str, Any]) -> Mapping[str, Any]:
    composition, values = _learn(groups, names, ours)
    merged = {name: value.detach().numpy() for name, value in composition.parameters(values).items()}
    return {name: merged.get(name, value) for name, value in groups["base"].items()}


def _check(case: Mapping[str, Any], groups: Groups, ours: Mapping[str, Any], merged: Any) -> list[str]:
    if "steps" not in ours:
        return []
    names = sorted(name for name in groups if name.startswith("expert"))
    _, values = _learn(groups, names, ours)
    limits, expected = case["tolerance"], groups["aux"]["coef"]
    if np.allclose(values.numpy(), expected, rtol=limits["rtol"], atol=limits["atol"]):
        return []
    return [f"coefficients are off by {np.abs(values.numpy() - expected).max():.3g}"]


TABLE: Mapping[tuple[str, str], Translation] = {
    ("atlas", "fredzzhang/atlas"): Translation(
        {
            "blockwise": fixed(True),
            "partition": without_effect,  # the groups come with the case
            "two_dim_only": fixed(True),
            "block_order": same("order"),
            "n_experts": without_effect,
            "lr": same("learning_rate"),
            "wd": same("weight_decay"),
            "steps": same("steps"),
            "clip_grad_norm": same("clip"),
            "optimizer": fixed("AdamW betas .9/.999 eps 1e-8"),
            "init": fixed("zeros"),
            "lp_reg": same("penalty"),
        },
        merge=_merge,
        extra=_check,
    ),
}
