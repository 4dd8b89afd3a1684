"""Low-rank adapters: where they go, how they start, how they are written (PEFT's format)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilience.core.atomic import write_text_atomic
from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import RequestError

__all__ = ["add_adapter", "adapter_config", "linear_layers", "write_adapter"]

_WEIGHTS = "adapter_model.safetensors"


def linear_layers(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every linear layer by module name.

    >>> linear_layers(nn.ModuleDict({"query": nn.Linear(8, 4), "norm": nn.LayerNorm(4)}))
    {'query': (4, 8)}
    """
    from transformers.pytorch_utils import Conv1D

    found = {}
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            found[name] = (int(module.weight.shape[1]), int(module.weight.shape[0]))
    return found


def choose_targets(layers: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Return the endings of module names that get an adapter: those asked for, or all linear layers in a layer list.

    >>> choose_targets(["encoder.layer.0.attention.query", "encoder.layer.1.attention.query", "pooler.dense"], None)
    ['attention.query']

    Raises RequestError when an ending matches no linear layer, with the layers found.
    """
    if asked is None:
        inside = [match.group(1) for name in layers if (match := re.match(r".*\.\d+\.(.+)$", name))]
        asked = sorted(set(inside)) or sorted(layers)
    unmatched = [ending for ending in asked if not any(_ends(name, ending) for name in layers)]
    if unmatched or not asked:
        raise RequestError(
            f"LoRA targets {unmatched or 'none'} match no linear layer; linear layers found: "
            + (", ".join(sorted({re.sub(r"\.\d+\.", ".*.", name) for name in layers})) or "none")
        )
    return list(asked)


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def add_adapter(
    transformer: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] | None,
    seed: int,
) -> tuple[dict[str, nn.Parameter], list[str], bool]:
    """Put a LoRA adapter on the transformer, in place; return its parameters by PEFT name, the targets, the layout.

    The layout is True where linear layers store (inputs, outputs), as GPT-2's do (PEFT's `fan_in_fan_out`).

    A is uniform within 1/sqrt(inputs), a function of (seed, tensor name, index); B is zero: the model is unchanged.
    All other parameters are frozen. Source: LoRA, arXiv 2106.09685.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = linear_layers(transformer)
    chosen = choose_targets(list(layers), targets)
    hit = {name: shape for name, shape in layers.items() if any(_ends(name, ending) for ending in chosen)}
    small = [f"{name} {list(shape)}" for name, shape in hit.items() if rank > min(shape)]
    if small:
        raise RequestError(f"rank {rank} is above the smaller side of: {', '.join(small[:8])}")
    transposed = not isinstance(transformer.get_submodule(next(iter(hit))), nn.Linear)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen, fan_in_fan_out=transposed)
    inject_adapter_in_model(config, transformer)
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_" in name:
            parameters["base_model.model." + name.replace(".default.", ".")] = parameter
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(torch.zeros_like(parameter) if ".lora_B" in name else _start(name, parameter, seed))
    return parameters, chosen, transposed


def _start(name: str, parameter: Tensor, seed: int) -> Tensor:
    bits = uniform_bits(stream_key(seed, name), 0, parameter.numel()).astype(np.float64)
    bound = 1.0 / math.sqrt(parameter.shape[1])
    values = ((bits + 0.5) / 2.0**32 * 2.0 - 1.0) * bound
    return torch.from_numpy(values.astype(np.float32)).view(parameter.shape)


def adapter_config(
    *, base: str, rank: int, alpha: float, targets: Sequence[str], fan_in_fan_out: bool = False
) -> dict[str, Any]:
    """Return the content of `adapter_config.json`.

    >>> adapter_config(base="b", rank=2, alpha=4, targets=["query"])["peft_type"]
    'LORA'
    """
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(targets),
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, dtype: str) -> None:
    """Write a PEFT adapter folder: `adapter_config.json` and `adapter_model.safetensors`."""
    from consilience.models.saving import write_tensors

    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, tensors, dtype=dtype, file=_WEIGHTS)
    write_text_atomic(folder / "adapter_config.json", json.dumps(dict(config), indent=2) + "\n")
