"""Sensitivities: how much the loss depends on each tensor, s = mean over examples of sum |theta * dLoss/dtheta|.

One number per tensor; Sens-Merging adds those of a layer. A reconstruction, as the method is: the authors published
no code.

Source: Liu et al. 2025, arXiv 2502.12420.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consilience.tuning.statistic import current, gradients_of, parameter_shapes
from consilience.tuning.sums import Shapes, Sums

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["Sensitivity"]


class Sensitivity:
    """The mean of sum |theta * gradient| per tensor."""

    kind = "sensitivity"
    single = True

    def shapes(self, model: Predictor, batch: Any) -> Shapes:
        """A number per tensor."""
        return dict.fromkeys(parameter_shapes(model), ())

    def add(self, model: Predictor, batch: Any, first: int, sums: Sums) -> None:
        """Add each example's own gradient."""
        values = current(model)
        leaves = {name: values[name].requires_grad_() for name in sums.totals if name in values}
        losses = model.loss(batch, leaves, reduction="none")
        for _, _, gradients in gradients_of(losses, leaves):
            for name, gradient in gradients.items():
                if gradient is not None:
                    sums.totals[name] += (gradient * leaves[name].detach()).abs().double().sum()
        for name in sums.totals:
            sums.counts[name] += len(losses)
