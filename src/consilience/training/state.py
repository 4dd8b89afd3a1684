"""The state of a training run between steps: parameters, optimiser moments, what was measured so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from consilience.core.atomic import write_bytes_atomic

__all__ = ["load_state", "save_state"]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save_state(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
) -> None:
    """Write everything that the next step depends on, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach()
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    copies = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes_atomic(path, save(copies, metadata={"facts": json.dumps(facts)}))


def load_state(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Put a saved state back and return its facts; None when there is no state yet."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
        for name, parameter in parameters.items():
            with torch.no_grad():
                parameter.copy_(file.get_tensor(f"parameter/{name}"))
            state = {moment: file.get_tensor(f"{moment}/{name}") for moment in _MOMENTS}
            optimizer.state[parameter] = {
                moment: value if moment == "step" else value.to(parameter.device) for moment, value in state.items()
            }
    return facts
