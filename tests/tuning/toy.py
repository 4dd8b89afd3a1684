"""Small networks as predictors, with nothing but torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ToyPredictor:
    """Any module as a predictor; an example is (input, label), the head is outside the named tensors."""

    def __init__(self, name: str, module: nn.Module, head: Tensor, *, positions: bool = False) -> None:
        self.name = name
        self.module = module
        self.head = head
        self.names = {parameter: parameter for parameter, _ in module.named_parameters()}
        self.positions = positions

    def batches(self, examples: Sequence[Any], size: int) -> Iterator[Any]:
        for start in range(0, len(examples), size):
            inputs, labels = zip(*examples[start : start + size], strict=True)
            yield torch.stack([torch.as_tensor(x) for x in inputs]), torch.tensor(labels)

    def logits(self, batch: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        out = torch.func.functional_call(self.module, dict(parameters or {}), (batch[0],)) @ self.head.T
        return out if self.positions or out.ndim == 2 else out.mean(dim=1)

    def loss(self, batch: Any, parameters: Mapping[str, Tensor] | None = None, *, reduction: str = "mean") -> Tensor:
        return functional.cross_entropy(self.logits(batch, parameters), batch[1], reduction=reduction)


def network(seed: int, inputs: int = 6, width: int = 5, outputs: int = 4) -> nn.Module:
    """Two linear layers with a ReLU between, as double precision."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs)).double()


def toy(seed: int, *, classes: int = 3) -> ToyPredictor:
    module = network(seed)
    return ToyPredictor(f"toy{seed}", module, torch.randn(classes, 4, dtype=torch.float64))


def toy_examples(seed: int, count: int = 7, *, classes: int = 3) -> list[tuple[Any, int]]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return list(zip(rows.numpy(), labels.tolist(), strict=True))


class _Layer(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.intermediate = nn.Linear(width, inner)
        self.output = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(x + self.output(functional.gelu(self.intermediate(x))))


class TokenNetwork(nn.Module):
    """Embedding, then residual layers with GELU and a norm after: the network of the published RegMean++ cases."""

    def __init__(self, tokens: int, width: int, inner: int, layers: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(tokens, width)
        self.layer = nn.ModuleList(_Layer(width, inner) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings(tokens)
        for layer in self.layer:
            x = layer(x)
        return x


def token_network(state: Mapping[str, Any]) -> ToyPredictor:
    """The network that fits a state dict."""
    tokens, width = state["embeddings.weight"].shape
    layers = sum(name.endswith("intermediate.weight") for name in state)
    module = TokenNetwork(tokens, width, state["layer.0.intermediate.weight"].shape[0], layers)
    module.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    return ToyPredictor("tokens", module, torch.eye(width)[:2])
