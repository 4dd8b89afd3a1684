"""A batch whose inputs each want another mix of experts, in one forward pass: per layer, by the experts' factors.

For input b with weights w_b the layer of the mixed model theta_b = shared + sum_i w_bi (theta_i - shared) gives

    y_b = x_b W^T + sum_i w_bi (x_b R_i^T) L_i^T      where theta_i - shared = L_i R_i is kept as factors

so no weights are made per input, and any inputs go into one batch. The same holds, with an elementwise product, for
norms, biases and embeddings. Source: the layer's algebra; the dynamic merge is Twin-Merging's, arXiv 2406.15479.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from consilience.bundles.weights import is_float, read_state
from consilience.checkpoints.sources import LowRank, Stored
from consilience.errors import RequestError

if TYPE_CHECKING:
    from consilience.bundles.bundle import Bundle

__all__ = ["Change", "Changes", "mixed_weights", "read_changes"]


@dataclass(frozen=True)
class Change:
    """What the experts change of one tensor: factors of all experts side by side, or one difference per expert.

    `left` is (rows, ranks) and `right` (ranks, columns), `owner` (ranks,) the place of the expert that a rank belongs
    to; `whole` is a list of (place, difference) of experts kept otherwise. float32.
    """

    left: Tensor | None
    right: Tensor | None
    owner: Tensor | None
    whole: tuple[tuple[int, Tensor], ...] = ()


Changes = Mapping[str, Change]


def read_changes(
    bundle: Bundle, experts: Sequence[str] | None = None, *, device: str | torch.device = "cpu"
) -> Changes:
    """Read what experts (all) change, by tensor name; what is kept as factors stays factors.

    Memory: the factors; for masks, sparse changes and tensors kept whole a full difference per expert.
    """
    bundle.require_alike()
    names = bundle.experts if experts is None else tuple(experts)
    opened = [bundle.expert(name).tensors for name in names]
    found = {}
    for name, shared in bundle.shared.tensors.items():
        parts: list[tuple[int, Tensor, Tensor]] = []
        whole: list[tuple[int, Tensor]] = []
        if not is_float(shared):
            continue
        for place, tensors in enumerate(opened):
            source = tensors[name]
            if source is shared:
                continue
            if isinstance(source, LowRank) and source.base is shared and len(shared.shape) == 2:
                parts.append((place, *_factors(source, device)))
            else:
                below = read_state({name: shared})[name].float()
                whole.append((place, (read_state({name: source})[name].float() - below).to(device)))
        if parts:
            owner = torch.cat([torch.full((left.shape[1],), place) for place, left, _ in parts]).to(device)
            left, right = torch.cat([p[1] for p in parts], dim=1), torch.cat([p[2] for p in parts])
            found[name] = Change(left, right, owner, tuple(whole))
        elif whole:
            found[name] = Change(None, None, None, tuple(whole))
    return found


def _factors(source: LowRank, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Return left (rows, rank) with the scale in it, and right (rank, columns)."""
    a, b = _matrix(source.a), _matrix(source.b)
    left, right = (a.T, b.T) if source.fan_in_fan_out else (b, a)
    return (left * source.scale).contiguous().to(device), right.contiguous().to(device)


def _matrix(stored: Stored) -> Tensor:
    values = np.empty(stored.numel, np.float32)
    stored.read(0, stored.numel, values)
    return torch.from_numpy(values).reshape(stored.shape).flatten(1)


@contextmanager
def mixed_weights(module: nn.Module, names: Mapping[str, str], changes: Changes, weights: Tensor) -> Iterator[None]:
    """Within the block, `module` answers each input of a batch as the model mixed with that input's weights.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.eye(2))
    >>> change = Change(torch.ones(2, 1), torch.ones(1, 2), torch.tensor([0]))
    >>> with torch.no_grad(), mixed_weights(layer, {"weight": "w"}, {"w": change}, torch.tensor([[0.0], [0.5]])):
    ...     layer(torch.tensor([[1.0, 2.0], [1.0, 2.0]])).tolist()
    [[1.0, 2.0], [2.5, 3.5]]

    names: parameter of `module` -> tensor name. weights: (inputs, experts), in the order `changes` was read in; the
    first axis of every layer's input is the inputs of the batch (or 1: the same for all).

    Layers with changes may be `Linear`, `Embedding` and `LayerNorm`; raises RequestError naming any other.
    """
    planned: dict[nn.Module, dict[str, Change]] = {}
    problems = []
    for parameter, tensor in names.items():
        if tensor not in changes:
            continue
        path, _, own = parameter.rpartition(".")
        layer = module.get_submodule(path)
        if not isinstance(layer, nn.Linear | nn.Embedding | nn.LayerNorm):
            problems.append(f"{tensor} of {type(layer).__name__}")
        planned.setdefault(layer, {})[own] = changes[tensor]
    if problems:
        raise RequestError(
            f"inputs cannot be mixed layer by layer in {', '.join(problems[:4])}: only Linear, Embedding and LayerNorm "
            "can; use the grouped evaluation, which makes whole models"
        )
    handles = [layer.register_forward_hook(_hook(layer, own, weights)) for layer, own in planned.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(layer: nn.Module, own: Mapping[str, Change], weights: Tensor) -> Callable[..., Tensor]:
    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        (given,) = inputs
        if len(given) not in (1, len(weights)):
            raise RequestError(
                f"a layer was given {len(given)} inputs at once and the batch has weights for {len(weights)}"
            )
        if isinstance(layer, nn.LayerNorm):
            return _norm(layer, own, weights, given)
        if isinstance(layer, nn.Embedding):
            return output + _rows(own["weight"], weights, given)
        if "weight" in own:
            output = output + _product(own["weight"], weights, given)
        return output + _spread(_vector(own["bias"], weights), output.dim()) if "bias" in own else output

    return hook


def _spread(values: Tensor, axes: int) -> Tensor:
    """Return (inputs, ..., n) of (inputs, n)."""
    return values.view(values.shape[0], *[1] * (axes - 2), values.shape[1])


def _product(change: Change, weights: Tensor, given: Tensor) -> Tensor:
    total = torch.zeros((), device=given.device)
    if change.left is not None and change.right is not None and change.owner is not None:
        inner = functional.linear(given, change.right)
        total = functional.linear(inner * _spread(weights[:, change.owner], inner.dim()), change.left)
    for place, difference in change.whole:
        own = functional.linear(given, difference)
        total = total + own * _spread(weights[:, place : place + 1], own.dim())
    return total


def _rows(change: Change, weights: Tensor, indices: Tensor) -> Tensor:
    axes = indices.dim() + 1
    total = torch.zeros((), device=weights.device)
    if change.left is not None and change.right is not None and change.owner is not None:
        inner = functional.embedding(indices, change.left) * _spread(weights[:, change.owner], axes)
        total = inner @ change.right
    for place, difference in change.whole:
        total = total + functional.embedding(indices, difference) * _spread(weights[:, place : place + 1], axes)
    return total


def _vector(change: Change, weights: Tensor) -> Tensor:
    """Return (inputs, n): the sum of a vector's differences by each input's weights."""
    return torch.stack([weights[:, place : place + 1] * value for place, value in change.whole]).sum(dim=0)


def _norm(layer: nn.LayerNorm, own: Mapping[str, Change], weights: Tensor, given: Tensor) -> Tensor:
    out = functional.layer_norm(given, layer.normalized_shape, None, None, layer.eps)
    for name in ("weight", "bias"):
        value = getattr(layer, name)
        if value is None:
            continue
        if name in own:
            value = value + _spread(_vector(own[name], weights), given.dim())
        out = out * value if name == "weight" else out + value
    return out
