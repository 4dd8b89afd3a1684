"""Methods on statistics: Fisher, RegMean, RegMean++, AIM, Sens-Merging."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from consilience.merging.memory import merge_state_dicts
from tests.golden.translate import Groups, Translation, choose, fixed, same, without_effect

SENS = (
    "reconstruction: the authors published no code (their Long-to-Short repository announces it only); formulas from "
    "the abstract, paper reviews and one third-party script; the exact paper equations were not available"
)


def _fisher(groups: Groups, names: Sequence[str]) -> dict[str, Any]:
    return {"fisher": {name: _part(groups, f"fisher{index}.") for index, name in enumerate(names)}}


def _grams(groups: Groups, names: Sequence[str]) -> dict[str, Any]:
    return {"gram": {name: _weights(_part(groups, f"gram{index}.")) for index, name in enumerate(names)}}


def _activation(groups: Groups, names: Sequence[str]) -> dict[str, Any]:
    return {"activation": _weights(_part(groups, "act."))}


def _part(groups: Groups, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in groups["aux"].items() if name.startswith(prefix)}


def _weights(modules: Mapping[str, Any]) -> dict[str, Any]:
    """The reference names modules, we name the weights."""
    return {f"{name}.weight": value for name, value in modules.items()}


def _sequential(
    case: Mapping[str, Any], groups: Groups, names: Sequence[str], parameters: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Gather the Grams on the case's tokens with our own code, layer by layer, and merge with them."""
    from consilience.tuning import gather_statistics
    from tests.tuning.toy import token_network

    tokens = {name: groups["aux"][f"tokens{index}"] for index, name in enumerate(names)}
    examples = {name: [(row, 0) for row in rows.reshape(-1, rows.shape[-1])] for name, rows in tokens.items()}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "statistics"
        gather_statistics(
            {name: token_network(groups[name]) for name in names},
            examples,
            out,
            kinds=("sequential_gram",),
            batch=tokens[names[0]].shape[1],
            progress=False,
            **parameters,
        )
        grams = {name: load_file(out / name / "sequential_gram.safetensors") for name in names}
    experts = {name: groups[name] for name in names}
    return merge_state_dicts("regmean_plusplus", None, experts, aux={"sequential_gram": grams}, **parameters)


def _sens(
    case: Mapping[str, Any], groups: Groups, names: Sequence[str], parameters: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The case gives sensitivities by layer; one tensor of the layer takes them, the others 0."""
    floats = sorted(name for name, value in groups["base"].items() if value.dtype.kind == "f")
    measured = {name: dict.fromkeys(floats, np.float32(0)) for name in names}
    for column, layer in enumerate(case["layers"]):
        first = next(name for name in floats if name == layer or name.startswith(f"{layer}."))
        for row, name in enumerate(names):
            measured[name][first] = groups["aux"]["sensitivity"][row, column]
    distance = groups["aux"]["logit_distance"].sum(axis=1, dtype=np.float64).tolist()
    experts = {name: groups[name] for name in names}
    return merge_state_dicts(
        "sens", groups["base"], experts, aux={"sensitivity": measured}, distance=distance, **parameters
    )


def _sigma(
    case: Mapping[str, Any], groups: Groups, parameters: Mapping[str, Any], merged: Mapping[str, Any]
) -> list[str]:
    """Compare the coefficients themselves: a merge of near experts says little about them."""
    count = len(groups["aux"]["sigma"])
    problems = []
    for column, layer in enumerate(case["layers"]):
        for name, value in merged.items():
            if not (name == layer or name.startswith(f"{layer}.")) or value.dtype.kind != "f":
                continue
            base = groups["base"][name].astype(np.float64)
            deltas = [(groups[f"expert{i}"][name] - base).ravel() for i in range(count)]
            found, *_ = np.linalg.lstsq(np.stack(deltas, 1), (value - base).ravel() / count, rcond=None)
            wanted = groups["aux"]["sigma"][:, column]
            if np.abs(found - wanted).max() > 1e-4:
                problems.append(f"{name}: coefficients {found.round(5).tolist()}, not {wanted.tolist()}")
    return problems


def _coefficients(value: Sequence[float] | None, experts: int) -> dict[str, Any]:
    return {} if value is None else {"weight": list(value)}


def _shrinkage(value: float, experts: int) -> dict[str, Any]:
    """A negative factor leaves the Grams as they are."""
    return {"reduce_non_diagonal_ratio": value if value >= 0 else 1.0}


def _importance(value: float | list[float], experts: int) -> dict[str, Any]:
    """The entry point on task vectors leaves biases at the base."""
    return {"weight": value, "biases": "base"}


TABLE: Mapping[tuple[str, str], Translation] = {
    ("fisher", "tanganke/fusion_bench"): Translation(
        {
            "normalize_fisher_weight": same("normalize"),
            "minimal_fisher_weight": same("minimum"),
            "fisher_scaling_coefficients": _coefficients,
        },
        aux=_fisher,
    ),
    ("regmean", "bloomberg/dataless-model-merging"): Translation(
        {"regmean_reduce_nondiag": _shrinkage, "model_coeffs": _coefficients}, aux=_grams
    ),
    ("regmean_plusplus", "tanganke/fusion_bench"): Translation(
        {
            "reduce_non_diagonal_ratio": same("reduce_non_diagonal_ratio"),
            "weight_transpose": fixed(True),
            "num_examples": without_effect,  # the tokens say it
        },
        merge=_sequential,
    ),
    ("aim", "ahnobari/ActivationInformedMerging"): Translation(
        {"lamb": _importance, "omega": same("omega")}, aux=_activation
    ),
    ("sens", SENS): Translation(
        {
            "temperature": same("temperature"),
            "layer_key": choose(
                "layer", {"first three dotted components of the tensor name": r"(?:[^.]+\.){0,2}[^.]+"}
            ),
        },
        merge=_sens,
        extra=_sigma,
    ),
}
