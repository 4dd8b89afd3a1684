"""What every kind of statistic is: sums over examples, gathered from a predictor batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from consilience.checkpoints.dtypes import DTYPES
from consilience.tuning.sums import Shapes, Sums

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["Statistic", "counted_positions", "current", "gradients_of", "parameter_shapes"]

_GRADIENT_BYTES = 1 << 28


class Statistic(Protocol):
    """One kind of statistic of a model on data."""

    kind: str
    single: bool
    """Whether it looks at the outcomes of each example, one by one where they do not depend on the others."""

    def shapes(self, model: Predictor, batch: Any) -> Shapes:
        """Return names and shapes of the tensors it makes; `batch` is there to try the model on."""
        ...

    def add(self, model: Predictor, batch: Any, first: int, sums: Sums) -> None:
        """Add a batch, whose first example has the number `first`, to the sums of some of the tensors."""
        ...


def current(model: Predictor) -> dict[str, Tensor]:
    """Return the model's parameters by the name of their tensor, apart from any graph."""
    own = dict(model.module.named_parameters())
    return {tensor: own[name].detach() for name, tensor in model.names.items()}


def parameter_shapes(model: Predictor) -> dict[str, tuple[int, ...]]:
    """Return the shape of every floating tensor of the model's checkpoint.

    Tensors that are no parameter (a pooler that the outcomes do not depend on) belong to a merge too, and their
    statistics are zero.
    """
    shapes = {name: tuple(value.shape) for name, value in current(model).items()}
    checkpoint = getattr(model, "checkpoint", None)
    stored = checkpoint.tensors if checkpoint is not None else {}
    for name, source in stored.items():
        if name not in shapes and DTYPES[source.dtype].kind == "float":
            shapes[name] = tuple(source.shape)
    return dict(sorted(shapes.items()))


def gradients_of(values: Tensor, leaves: dict[str, Tensor]) -> Any:
    """Yield (start, stop, gradients) of the entries of a vector, as many at once as memory allows.

    gradients: name -> (stop - start, *shape), or None for a tensor that the values do not depend on.
    """
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves.values())
    at_once = max(1, _GRADIENT_BYTES // max(size, 1))
    inputs = list(leaves.values())
    for start in range(0, len(values), at_once):
        part = values[start : start + at_once]
        if len(part) == 1:
            found = torch.autograd.grad(part[0], inputs, retain_graph=True, allow_unused=True)
            found = tuple(None if g is None else g[None] for g in found)
        else:
            chosen = torch.eye(len(part), dtype=part.dtype, device=part.device)
            found = torch.autograd.grad(
                part, inputs, chosen, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
        yield start, start + len(part), dict(zip(leaves, found, strict=True))


def counted_positions(batch: Any, logits: Tensor) -> Tensor:
    """Return (examples, positions) bool: the positions of texts whose next token counts in the loss.

    A batch says which tokens count in `counted`; all positions do where it says nothing.
    """
    counted: Tensor | None = getattr(batch, "counted", None)
    if counted is None:
        return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    return torch.cat([counted[:, 1:], counted.new_zeros(len(counted), 1)], dim=1)
