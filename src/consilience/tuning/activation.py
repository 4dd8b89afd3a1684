"""Activations: the mean magnitude of each input channel of linear layers and norms, over tokens.

It stands under the name of the module's weight; padding is left out. AIM divides by the largest channel, so the
authors' sum over blocks of 512 tokens says the same.

Source: Nobari et al. 2025, arXiv 2502.02421.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from consilience.tuning.inputs import module_inputs, reached, weighted_modules, width_of
from consilience.tuning.sums import Shapes, Sums

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["Activation"]


class Activation:
    """The mean of |x| per channel."""

    kind = "activation"
    single = False

    def shapes(self, model: Predictor, batch: Any) -> Shapes:
        """A vector over the inputs of each module."""
        modules = weighted_modules(model)
        return {name: (width_of(modules[name]),) for name in reached(model, batch, modules)}

    def add(self, model: Predictor, batch: Any, first: int, sums: Sums) -> None:
        """Add the inputs of a batch."""
        modules = {name: module for name, module in weighted_modules(model).items() if name in sums.totals}
        with (
            torch.no_grad(),
            module_inputs(
                model, batch, modules, lambda name, rows: sums.add(name, rows.abs().double().sum(dim=0), len(rows))
            ),
        ):
            model.logits(batch)
