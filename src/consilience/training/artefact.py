"""What is trained and what is written: a LoRA adapter, or all weights of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from consilience.checkpoints.dtypes import dtype_from_name, torch_name
from consilience.models.causal import CausalModel
from consilience.models.encoder import DenseEncoder
from consilience.training.lora import adapter_config, add_adapter, write_adapter

__all__ = ["CausalAdapter", "CausalWeights", "FullWeights", "LoraAdapter", "Trainee", "rounded"]


class Trainee(Protocol):
    """Something that can be trained and written: `parameters` are changed by the loop, in place."""

    parameters: Mapping[str, nn.Parameter]
    dtype: str | None

    def write(self, folder: Path) -> None:
        """Write the expert as it stands to `folder`."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what the record says about it."""
        ...


class LoraAdapter:
    """A LoRA adapter on the linear layers of an encoder's transformer, which is changed in place."""

    def __init__(
        self,
        encoder: DenseEncoder,
        base: str,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str] | None,
        seed: int,
        dtype: str,
    ) -> None:
        self.dtype: str | None = dtype
        transformer = encoder.stack.transformer
        parameters, chosen, transposed = add_adapter(transformer, rank=rank, alpha=alpha, targets=targets, seed=seed)
        self.parameters: Mapping[str, nn.Parameter] = parameters
        for parameter in encoder.stack.after.parameters():
            parameter.requires_grad_(False)
        self.config = adapter_config(base=base, rank=rank, alpha=alpha, targets=chosen, fan_in_fan_out=transposed)

    def write(self, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        write_adapter(folder, self.parameters, self.config, dtype=str(self.dtype))

    def facts(self) -> dict[str, Any]:
        """Return rank, alpha, targets and the size of the change."""
        scale = self.config["lora_alpha"] / self.config["r"]
        squares = 0.0
        for name, a in self.parameters.items():
            if ".lora_A." in name:
                b = self.parameters[name.replace(".lora_A.", ".lora_B.")]
                squares += float((scale * b.detach() @ a.detach()).square().sum())
        return {
            "method": "lora",
            "rank": self.config["r"],
            "alpha": self.config["lora_alpha"],
            "targets": self.config["target_modules"],
            "dtype": self.dtype,
            "parameters": sum(parameter.numel() for parameter in self.parameters.values()),
            "delta_norm": round(squares**0.5, 4),
        }


class FullWeights:
    """All weights of an encoder that take part in its vectors."""

    def __init__(self, encoder: DenseEncoder, *, dtype: str | None) -> None:
        self.dtype = dtype
        self.encoder = encoder
        self.parameters: Mapping[str, nn.Parameter] = encoder.parameters()
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def write(self, folder: Path) -> None:
        """Write a sentence-transformers folder."""
        from consilience.models.saving import write_encoder

        write_encoder(self.encoder, folder, dtype=self.dtype)

    def facts(self) -> dict[str, Any]:
        """Return the number type written (None: that of the base) and the number of parameters."""
        count = sum(parameter.numel() for parameter in self.parameters.values())
        return {"method": "full", "dtype": self.dtype, "parameters": count}


class CausalAdapter(LoraAdapter):
    """A LoRA adapter on the linear layers of a causal language model, which is changed in place."""

    def __init__(
        self,
        model: CausalModel,
        base: str,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str] | None,
        seed: int,
        dtype: str,
    ) -> None:
        self.dtype = dtype
        self.parameters, chosen, transposed = add_adapter(
            model.module, rank=rank, alpha=alpha, targets=targets, seed=seed
        )
        config = adapter_config(base=base, rank=rank, alpha=alpha, targets=chosen, fan_in_fan_out=transposed)
        self.config = {**config, "task_type": "CAUSAL_LM"}


class CausalWeights:
    """All weights of a causal language model."""

    def __init__(self, model: CausalModel, *, dtype: str | None) -> None:
        self.dtype = dtype
        self.model = model
        self.parameters: Mapping[str, nn.Parameter] = model.parameters()
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def write(self, folder: Path) -> None:
        """Write a model folder."""
        self.model.write(folder, dtype=self.dtype)

    def facts(self) -> dict[str, Any]:
        """Return the number type written (None: that of the base) and the number of parameters."""
        count = sum(parameter.numel() for parameter in self.parameters.values())
        return {"method": "full", "dtype": self.dtype, "parameters": count}


@contextmanager
def rounded(trainee: Trainee) -> Iterator[None]:
    """Give the parameters the values that they have once written, for as long as the context lasts."""
    if trainee.dtype is None or dtype_from_name(trainee.dtype) == "F32":
        yield
        return
    kept = {name: parameter.detach().clone() for name, parameter in trainee.parameters.items()}
    stored = getattr(torch, torch_name(str(dtype_from_name(trainee.dtype))))
    with torch.no_grad():
        for parameter in trainee.parameters.values():
            parameter.copy_(parameter.to(stored))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in trainee.parameters.items():
                parameter.copy_(kept[name])
