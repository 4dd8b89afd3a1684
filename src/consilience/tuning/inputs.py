"""What goes into the modules of a running model: one row per token, padding left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["evaluating", "linear_layers", "module_inputs", "reached", "weighted_modules", "width_of"]


def linear_layers(model: Predictor) -> dict[str, nn.Module]:
    """Return the linear layers by the name of their weight's tensor."""
    return _with_weight(model, lambda module: isinstance(module, nn.Linear))


def weighted_modules(model: Predictor) -> dict[str, nn.Module]:
    """Return linear layers and norms (a weight of one axis) by the name of their weight's tensor."""
    return _with_weight(model, lambda module: isinstance(module, nn.Linear) or _axes(module) == 1)


def width_of(module: nn.Module) -> int:
    """Return the number of input channels."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[-1])


def _axes(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    return weight.ndim if isinstance(weight, Tensor) else 0


def _with_weight(model: Predictor, fits: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    found = {}
    for name, module in model.module.named_modules():
        weight = f"{name}.weight" if name else "weight"
        if weight in model.names and fits(module):
            found[model.names[weight]] = module
    return found


@contextmanager
def module_inputs(
    model: Predictor, batch: Any, modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """While the context lasts, give the input of each module to `see`: its name and (tokens, width).

    Padding is known from the batch (`mask`, True on tokens) or from the `attention_mask` that the network is called
    with; inputs of another shape, such as pooled ones, are taken whole.
    """
    masks: list[Tensor | None] = [getattr(batch, "mask", None)]

    def called(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [named, *(argument for argument in arguments if isinstance(argument, Mapping))]
        found = next((part["attention_mask"] for part in given if part.get("attention_mask") is not None), None)
        if isinstance(found, Tensor) and found.ndim == 2:
            masks[0] = found

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def seen(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            values: Tensor = (arguments[0] if arguments else next(iter(named.values()))).detach()
            rows = values.reshape(-1, values.shape[-1])
            mask = masks[0]
            if mask is not None and mask.numel() == len(rows):
                rows = rows[mask.reshape(-1).bool()]
            see(name, rows)

        return seen

    handles = [model.module.register_forward_pre_hook(called, with_kwargs=True)]
    handles += [module.register_forward_pre_hook(watch(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reached(model: Predictor, batch: Any, modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return how often each module that is called for one batch is, in the order of the first calls."""
    calls: dict[str, int] = {}

    def count(name: str, rows: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1

    with torch.no_grad(), module_inputs(model, batch, modules, count):
        model.logits(batch)
    return calls


@contextmanager
def evaluating(model: Predictor) -> Iterator[None]:
    """Turn dropout off for a while."""
    training = model.module.training
    model.module.eval()
    try:
        yield
    finally:
        model.module.train(training)
