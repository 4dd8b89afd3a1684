"""Networks that turn a grey image into a vector: a perceptron, and a vision transformer.

All products are `torch.nn.Linear`, so that Gram matrices can be taken of every layer. Names of tensors:
`layers.N.weight` in the perceptron; `embeddings.patch`, `embeddings.position`, `layers.N.attention.{query,key,value,
output}`, `layers.N.mlp.{up,down}`, `layers.N.norm{1,2}` and `norm` in the transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilience.errors import RequestError

__all__ = ["PerceptronConfig", "TransformerConfig", "build_network", "config_of", "config_record"]

_POSITION = 0.3  # standard deviation; as large as patches are, or a short training does not find out where they are


@dataclass(frozen=True)
class PerceptronConfig:
    """A perceptron with ReLU between its layers: `hidden_sizes` are the outputs of the layers, the last the vector."""

    image_size: int = 8
    hidden_sizes: tuple[int, ...] = (96, 96, 48)
    model_type = "image_perceptron"

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        return self.hidden_sizes[-1]


@dataclass(frozen=True)
class TransformerConfig:
    """A vision transformer: patches of `patch_size`, norms before the blocks, the mean over patches as the vector."""

    image_size: int = 28
    patch_size: int = 7
    hidden_size: int = 64
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    mlp_ratio: int = 2
    model_type = "image_transformer"

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        return self.hidden_size


Config = PerceptronConfig | TransformerConfig


def config_record(config: Config) -> dict[str, Any]:
    """Return a config as the content of a config.json."""
    return {"model_type": config.model_type, **asdict(config)}


def config_of(record: Mapping[str, Any]) -> Config:
    """Return the config of a config.json's content.

    >>> config_of({"model_type": "image_perceptron", "image_size": 8, "hidden_sizes": [4, 2]}).dimension
    2

    Raises RequestError where the model is of another type or the sizes do not go together.
    """
    kinds = {kind.model_type: kind for kind in (PerceptronConfig, TransformerConfig)}
    kind = kinds.get(record.get("model_type", ""))
    if kind is None:
        raise RequestError(
            f"config.json: model_type {record.get('model_type')!r} is no image network; known: {', '.join(kinds)}"
        )
    given = {key: record[key] for key in kind.__dataclass_fields__ if key in record}
    if "hidden_sizes" in given:
        given["hidden_sizes"] = tuple(given["hidden_sizes"])
    config = kind(**given)
    if isinstance(config, TransformerConfig) and (
        config.image_size % config.patch_size or config.hidden_size % config.num_attention_heads
    ):
        raise RequestError(
            f"{config}: the image has to be a whole number of patches, the hidden size a multiple of the heads"
        )
    return config


def build_network(config: Config, *, seed: int = 0) -> nn.Module:
    """Return a network with initial weights that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Perceptron(config) if isinstance(config, PerceptronConfig) else _Transformer(config)


class _Perceptron(nn.Module):
    def __init__(self, config: PerceptronConfig) -> None:
        super().__init__()
        widths = (config.image_size**2, *config.hidden_sizes)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, images: Tensor) -> Tensor:
        vectors = images.flatten(1)
        for index, layer in enumerate(self.layers):
            vectors = layer(functional.relu(vectors) if index else vectors)
        return vectors


class _Transformer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embeddings = _Patches(config)
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embeddings(images)
        for layer in self.layers:
            tokens = layer(tokens)
        vectors: Tensor = self.norm(tokens).mean(dim=1)
        return vectors


class _Patches(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.size = config.patch_size
        self.patch = nn.Linear(config.patch_size**2, config.hidden_size)
        count = (config.image_size // config.patch_size) ** 2
        self.position = nn.Parameter(torch.randn(count, config.hidden_size) * _POSITION)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unfold(1, self.size, self.size).unfold(2, self.size, self.size).flatten(3).flatten(1, 2)
        tokens: Tensor = self.patch(patches - 0.5) + self.position
        return tokens


class _Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, config.num_attention_heads)
        self.mlp = _FeedForward(width, config.mlp_ratio * width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class _Attention(nn.Module):
    """Written out, because gradients of several outcomes at once do not go through torch's fused attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / query.shape[-1] ** 0.5, dim=-1)
        out: Tensor = self.output((weights @ value).transpose(1, 2).flatten(2))
        return out


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.down(functional.gelu(self.up(tokens)))
        return out
