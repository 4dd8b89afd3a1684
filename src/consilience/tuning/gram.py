"""Gram matrices of the inputs of linear layers: G = X^T X / n over the n tokens (rows) that go through the layer.

Sums are float64, products of one batch float32; padding is left out. A Gram stands under the name of the layer's
weight. Layers that are not `torch.nn.Linear`, or that no example reaches, have none.

Source: Jin et al. 2022, arXiv 2212.09849.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from consilience.tuning.inputs import linear_layers, module_inputs, reached, width_of
from consilience.tuning.sums import Shapes, Sums

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["Gram"]


class Gram:
    """X^T X / n for every linear layer."""

    kind = "gram"
    single = False

    def shapes(self, model: Predictor, batch: Any) -> Shapes:
        """A square matrix over the inputs of each layer."""
        layers = linear_layers(model)
        return {name: (width_of(layers[name]),) * 2 for name in reached(model, batch, layers)}

    def add(self, model: Predictor, batch: Any, first: int, sums: Sums) -> None:
        """Add the inputs of a batch."""
        layers = {name: layer for name, layer in linear_layers(model).items() if name in sums.totals}
        with (
            torch.no_grad(),
            module_inputs(model, batch, layers, lambda name, rows: sums.add(name, rows.T @ rows, len(rows))),
        ):
            model.logits(batch)
