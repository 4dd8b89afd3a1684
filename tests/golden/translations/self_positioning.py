"""Self Positioning: the merged weights, the objective and its gradient with respect to a and the norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consilience.training.loss import in_batch_negatives
from consilience.tuning.slerp_positions import SlerpPositions
from tests.golden.translate import Groups, Translation, same, without_effect

SOURCE = "no official repository found; reconstructed from the paper formulas as quoted in public reading notes"
WORDS, QUERY = "embeddings.word.weight", "encoder.layer.0.attention.query"


def _positions(groups: Groups, names: Sequence[str], *, dtype: torch.dtype = torch.float32) -> SlerpPositions:
    states = {name: {k: _tensor(v, dtype) for k, v in groups[name].items()} for name in ("base", *names)}
    return SlerpPositions(states.pop("base"), states)


def _tensor(value: Any, dtype: torch.dtype) -> Tensor:
    found = torch.from_numpy(value)
    return found.to(dtype) if found.is_floating_point() else found


def _merge(case: Mapping[str, Any], groups: Groups, names: Sequence[str], ours: Mapping[str, Any]) -> Mapping[str, Any]:
    positions = _positions(groups, names)
    values = positions.coefficients(torch.tensor(ours["a"]), torch.tensor(ours["norm"]))
    return {**groups["base"], **{name: value.numpy() for name, value in positions.parameters(values).items()}}


def _check(case: Mapping[str, Any], groups: Groups, ours: Mapping[str, Any], merged: Any) -> list[str]:
    names = sorted(name for name in groups if name.startswith("expert"))
    aux, base = groups["aux"], groups["base"]
    a = torch.tensor(ours["a"], dtype=torch.float64, requires_grad=True)
    norm = torch.tensor(ours["norm"], dtype=torch.float64, requires_grad=True)
    positions = _positions(groups, names, dtype=torch.float64)
    at = {name: _tensor(value, torch.float64) for name, value in base.items()}
    at |= positions.parameters(positions.coefficients(a, norm))
    vectors = [
        at[WORDS][torch.from_numpy(aux[f"probe_{side}"])].mean(dim=1) @ at[f"{QUERY}.weight"].T + at[f"{QUERY}.bias"]
        for side in "qd"
    ]
    apart = torch.zeros(len(vectors[0]), len(vectors[0]), dtype=torch.bool)
    loss = in_batch_negatives(*vectors, apart, scale=1 / ours["temperature"]) + ours["mu"] * norm
    loss.backward()
    found = {"loss": loss.detach(), "grad_a": a.grad, "grad_lam": norm.grad}
    return [
        f"{what} is off by {np.abs(np.asarray(value) - aux[what]).max():.3g}"
        for what, value in found.items()
        if not np.allclose(np.asarray(value), aux[what], rtol=1e-4, atol=1e-7)
    ]


TABLE: Mapping[tuple[str, str], Translation] = {
    ("self-positioning", SOURCE): Translation(
        {
            "a": same("a"),
            "lam": same("norm"),
            "mu": same("mu"),
            "temperature": same("temperature"),
            "n_experts": without_effect,
            "block_order": without_effect,  # the order of tensors in a vector changes no angle
        },
        merge=_merge,
        extra=_check,
    ),
}
