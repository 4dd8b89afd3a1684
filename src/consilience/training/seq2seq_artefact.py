"""What training a sequence-to-sequence model writes: a LoRA adapter, or all weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from consilience.models.seq2seq import Seq2SeqModel
from consilience.training.artefact import LoraAdapter
from consilience.training.lora import adapter_config, add_adapter

__all__ = ["Seq2SeqAdapter", "Seq2SeqWeights"]


class Seq2SeqAdapter(LoraAdapter):
    """A LoRA adapter on the linear layers of encoder and decoder, which are changed in place."""

    def __init__(
        self,
        model: Seq2SeqModel,
        base: str,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str] | None,
        seed: int,
        dtype: str,
    ) -> None:
        self.dtype = dtype
        added = add_adapter(model.module, rank=rank, alpha=alpha, targets=targets, seed=seed)
        self.parameters, chosen, transposed = added
        config = adapter_config(base=base, rank=rank, alpha=alpha, targets=chosen, fan_in_fan_out=transposed)
        self.config = {**config, "task_type": "SEQ_2_SEQ_LM"}


class Seq2SeqWeights:
    """All weights of a sequence-to-sequence model."""

    def __init__(self, model: Seq2SeqModel, *, dtype: str | None) -> None:
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
