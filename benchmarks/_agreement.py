"""How far two tools' outputs of the same recipe agree, on a few tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _checkpoints import Size, read_tensor
from _peers import DENSITY, WEIGHTS


def agreement(method: str, size: Size, models: dict[str, Path], ours: Path, theirs: Path) -> list[dict[str, object]]:
    """Compare three tensors.

    `differ`: share of elements with other bits. `relative_rms`: of the difference, against our merged task vector.
    `norm_ratio`: their task vector's norm over ours (random masks differ, their effect should not). `at_threshold`
    (TIES): share of elements where some expert's magnitude equals its threshold, so that the choice is free.
    """
    middle = size.layers // 2
    names = [
        "model.layers.0.self_attn.q_proj.weight",
        f"model.layers.{middle}.mlp.down_proj.weight",
        f"model.layers.{middle}.self_attn.k_proj.weight",
    ]
    return [_compare(method, name, models, ours, theirs) for name in names]


def _compare(method: str, name: str, models: dict[str, Path], ours: Path, theirs: Path) -> dict[str, object]:
    base = read_tensor(models["base"], name)
    mine, other = read_tensor(ours, name), read_tensor(theirs, name)
    delta = np.linalg.norm((mine - base).astype(np.float64))
    found: dict[str, object] = {
        "tensor": name,
        "differ": float((mine != other).mean()),
        "relative_rms": float(np.linalg.norm((mine - other).astype(np.float64)) / delta),
        "norm_ratio": float(np.linalg.norm((other - base).astype(np.float64)) / delta),
    }
    if method == "ties":
        found["at_threshold"] = _at_threshold([read_tensor(models[e], name) - base for e in WEIGHTS], DENSITY[method])
    return found


def _at_threshold(deltas: list[np.ndarray], density: float) -> float:
    """Return the share of elements that tie with the threshold of some expert while not all of them can be kept."""
    free = np.zeros(deltas[0].shape, bool)
    for delta in deltas:
        magnitude = np.abs(delta)
        place = magnitude.size - int(density * magnitude.size)
        free |= magnitude == np.partition(magnitude, place)[place]
    return float(free.mean())
