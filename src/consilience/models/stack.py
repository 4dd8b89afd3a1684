"""The encoder as one torch module: transformer, pooling, and the modules after it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from consilience.errors import CheckpointError
from consilience.models.folder import ModuleConfig, pooling_modes
from consilience.models.pooling import pool, without_prompt

__all__ = ["EncoderStack"]


class EncoderStack(nn.Module):
    """Token ids to one vector per text.

    Parameters are named `transformer.<name in the transformer>` and `after.<position>.<name in the module>`.
    """

    def __init__(self, transformer: nn.Module, modules: Iterable[ModuleConfig], width: int) -> None:
        super().__init__()
        self.transformer = transformer
        pooling, *rest = modules
        self.modes = pooling_modes(pooling.config)
        self.include_prompt = bool(pooling.config.get("include_prompt", True))
        self.after = nn.ModuleList()
        self.paths: list[str] = []
        width *= len(self.modes)
        for module in rest:
            built = _build(module, width)
            width = getattr(built, "out_features", width)
            self.after.append(built)
            self.paths.append(module.path)
        self.dimension = width

    def forward(self, inputs: dict[str, Tensor], prompt: int = 0) -> Tensor:
        """Return (texts, dimension) vectors of a padded batch; `prompt` leading tokens stay out of pooling if asked."""
        tokens: Tensor = self.transformer(**inputs).last_hidden_state
        return self._finished(self._pooled(tokens, inputs["attention_mask"], prompt))

    def with_middle(self, inputs: dict[str, Tensor], prompt: int = 0) -> tuple[Tensor, Tensor]:
        """Return the vectors, and the pooled states of the middle layer (texts, width), without the modules after it.

        Of the states that transformers gives (the embeddings, then each layer's output) it is the one at half the list.
        """
        found = self.transformer(**inputs, output_hidden_states=True)
        mask, states = inputs["attention_mask"], found.hidden_states
        middle = self._pooled(states[len(states) // 2], mask, prompt)
        return self._finished(self._pooled(found.last_hidden_state, mask, prompt)), middle

    def _pooled(self, tokens: Tensor, mask: Tensor, prompt: int) -> Tensor:
        counted = mask if self.include_prompt or not prompt else without_prompt(mask, prompt)
        return pool(tokens, counted, self.modes, positions=mask.cumsum(dim=1))

    def _finished(self, vectors: Tensor) -> Tensor:
        for module in self.after:
            vectors = module(vectors)
        return vectors


class _Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, bias: bool, activation: nn.Module, residual: bool) -> None:
        super().__init__()
        self.out_features = outputs
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation_function = activation
        self.use_residual = residual
        if residual and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        out: Tensor = self.activation_function(self.linear(vectors))
        if not self.use_residual:
            return out
        return out + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class _Normalize(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, p=2.0, dim=-1)


class _LayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, vectors: Tensor) -> Tensor:
        out: Tensor = self.norm(vectors)
        return out


def _build(module: ModuleConfig, width: int) -> nn.Module:
    config = module.config
    if module.kind == "Normalize":
        return _Normalize()
    if module.kind == "LayerNorm":
        return _LayerNorm(width)
    if module.kind == "Dropout":
        return nn.Dropout(float(config.get("dropout", 0.2)))
    inputs, outputs = int(config.get("in_features", width)), int(config.get("out_features", width))
    if inputs != width:
        raise CheckpointError(f"{module.path}: in_features is {inputs}, but the vectors before it have width {width}")
    return _Dense(
        inputs,
        outputs,
        bias=bool(config.get("bias", True)),
        activation=_activation(module.path, config),
        residual=bool(config.get("use_residual", False)),
    )


def _activation(path: str, config: Any) -> nn.Module:
    written = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    found = getattr(torch.nn, written.rsplit(".", 1)[-1], None) if written.startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise CheckpointError(
            f"{path}: activation_function {written!r} is not a class of torch.nn; foreign code is not run: "
            "use one like torch.nn.modules.activation.Tanh or torch.nn.modules.linear.Identity"
        )
    try:
        return found()
    except TypeError as error:
        raise CheckpointError(f"{path}: activation_function {written!r} cannot be made without arguments") from error
