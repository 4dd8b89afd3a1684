"""Grams for RegMean++: layer by layer, expert i's own layer fed with what the layers merged so far give on its data.

1. Tensors are grouped into layers by their names, in the order in which the network calls them; layers without a
   linear part (embeddings) are averaged.
2. For each layer, for each expert: run its network with the merged layers before and its own layer, gather the Grams
   of the layer's linear parts, and stop behind it.
3. Merge the layer: its linear weights by regression on these Grams, the rest by the mean. Go on with the next.

Grams go to disk as they are made; memory holds one layer's Grams of one expert. Nothing of the data is kept between
layers, so the layers before are run again for each: half the depth times the data, in all.

Source: Nguyen et al. 2025, arXiv 2508.03121.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from consilience.errors import RequestError
from consilience.merging.matrix import matrices
from consilience.merging.regression import regression_mean
from consilience.tuning.inputs import evaluating, linear_layers, module_inputs, reached, width_of
from consilience.tuning.statistic import current
from consilience.tuning.sums import Shapes, Sums

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["Layer", "SequentialGrams"]


class _Enough(Exception):
    """All inputs of a layer have been seen."""


@dataclass(frozen=True)
class Layer:
    """Tensors that are merged together: `linear` by regression, `others` by the mean."""

    name: str
    linear: tuple[str, ...]
    others: tuple[str, ...]


class SequentialGrams:
    """The layers of experts of one architecture, and the merge as far as it has come."""

    kind = "sequential_gram"

    def __init__(
        self,
        models: Mapping[str, Predictor],
        examples: Mapping[str, Sequence[Any]],
        *,
        weight: Mapping[str, float],
        ratio: float,
        layer: str,
        batch: int,
        include: str = "",
        exclude: str = "",
    ) -> None:
        self.models = dict(sorted(models.items()))
        self.examples = examples
        self.batch = batch
        self.ratio = ratio
        self.regressed = matrices(include, exclude)
        self.shares = [weight[name] / math.fsum(weight.values()) for name in self.models]
        self.merged: dict[str, Tensor] = {}
        self.layers = self._layers(re.compile(layer))
        self.calls = {name: self._calls(name) for name in self.models}

    def _first(self, name: str) -> Any:
        return next(iter(self.models[name].batches(self.examples[name], self.batch)))

    def _layers(self, pattern: re.Pattern[str]) -> tuple[Layer, ...]:
        """Return the layers in the order in which they are called."""
        shapes = [{n: value.shape for n, value in current(model).items()} for model in self.models.values()]
        shared = {name for name, shape in shapes[0].items() if all(other.get(name) == shape for other in shapes)}
        name, model = next(iter(self.models.items()))
        layers = reached(model, self._first(name), linear_layers(model))
        linear = {tensor for tensor in layers if self.regressed(tensor, tuple(shapes[0][tensor]))}
        groups: dict[str, list[str]] = {}
        for tensor in _called(model, self._first(name)):
            found = pattern.match(tensor)
            groups.setdefault(found[0] if found else tensor, []).append(tensor)
        found_layers = tuple(
            Layer(
                key,
                tuple(t for t in tensors if t in linear and t in shared),
                tuple(t for t in tensors if t not in linear and t in shared),
            )
            for key, tensors in groups.items()
        )
        if not any(layer.linear for layer in found_layers):
            raise RequestError(
                f"sequential_gram: the experts {', '.join(self.models)} share no linear layer that their data reach; "
                "they have to be models of one architecture with the same names of tensors"
            )
        return found_layers

    def _calls(self, name: str) -> dict[str, int]:
        model = self.models[name]
        return reached(model, self._first(name), linear_layers(model))

    def shapes(self) -> Shapes:
        """Return names and shapes of the Grams, the same for every expert."""
        layers = linear_layers(next(iter(self.models.values())))
        return {name: (width_of(layers[name]),) * 2 for layer in self.layers for name in layer.linear}

    def passes(self) -> int:
        """Return how many batches are run in all."""
        linear = sum(bool(layer.linear) for layer in self.layers)
        return linear * sum(-(-len(self.examples[name]) // self.batch) for name in self.models)

    def gather(self, layer: Layer, name: str, step: Callable[[], None]) -> Iterator[tuple[str, Tensor]]:
        """Yield the Grams of expert `name` in a layer; `step` is called after each batch."""
        model = self.models[name]
        own = linear_layers(model)
        modules = {tensor: own[tensor] for tensor in layer.linear}
        widths = self.shapes()
        sums = Sums({tensor: widths[tensor] for tensor in layer.linear}, next(model.module.parameters()).device)
        expected = sum(self.calls[name].get(tensor, 0) for tensor in layer.linear)
        before = {tensor: self.merged[tensor] for tensor in model.names.values() if tensor in self.merged}
        seen = 0

        def see(tensor: str, rows: Tensor) -> None:
            nonlocal seen
            sums.add(tensor, rows.T @ rows, len(rows))
            seen += 1
            if seen == expected:
                raise _Enough

        with evaluating(model):
            for batch in model.batches(self.examples[name], self.batch):
                seen = 0
                with torch.no_grad(), module_inputs(model, batch, modules, see), suppress(_Enough):
                    model.logits(batch, before)
                step()
        yield from sums.means()

    def merge(self, layer: Layer, gram: Callable[[str, str], Tensor]) -> dict[str, float]:
        """Merge a layer; `gram` gives an expert's Gram of a tensor. Return the ridge of each weight that took one."""
        values = [current(model) for model in self.models.values()]
        names = list(self.models)
        ridges: dict[str, float] = {}
        for tensor in layer.linear:
            like = values[0][tensor]

            def one_gram(i: int, tensor: str = tensor, like: Tensor = like) -> Tensor:
                return gram(names[i], tensor).to(like.device)

            def one_weight(i: int, tensor: str = tensor, like: Tensor = like) -> Tensor:
                return values[i][tensor].to(like.device, torch.float32)

            merged, ridge = regression_mean(one_gram, one_weight, self.shares, self.ratio)
            self.merged[tensor] = merged.to(like.dtype)
            if ridge is not None:
                ridges[tensor] = ridge
        for tensor in layer.others:
            like = values[0][tensor]
            mean = torch.zeros_like(like, dtype=torch.float64)
            for share, own in zip(self.shares, values, strict=True):
                mean.add_(own[tensor].to(like.device), alpha=share)
            self.merged[tensor] = mean.to(like.dtype)
        return ridges


def _called(model: Predictor, batch: Any) -> list[str]:
    """Return the tensors in the order in which the modules that own them are first called."""
    order: dict[str, None] = {}
    handles = []
    for path, module in model.module.named_modules():
        prefix = f"{path}." if path else ""
        own = [model.names[prefix + n] for n, _ in module.named_parameters(recurse=False) if prefix + n in model.names]

        def note(module: Any, arguments: Any, own: list[str] = own) -> None:
            order.update(dict.fromkeys(own))

        if own:
            handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.no_grad(), evaluating(model):
            model.logits(batch)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)
