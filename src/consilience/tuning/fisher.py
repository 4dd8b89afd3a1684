"""Fisher diagonals: how much a model's log-probabilities change with each parameter.

    F = mean over examples x of sum_y p(y|x) (d log p(y|x) / d theta)^2

Every outcome y counts by its probability, or y is drawn from p(y|x) `draws` times, which has the same expectation. Of
a text, the outcomes of all its counted positions are drawn together. Squares are taken per example and per outcome;
codes that square the gradient of a batch's sum measure something else.

Source: Matena and Raffel 2021, arXiv 2111.09832, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from consilience.core.randomness import stream_key, uniform_bits
from consilience.tuning.statistic import counted_positions, current, gradients_of, parameter_shapes
from consilience.tuning.sums import Shapes, Sums

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["Fisher"]


class Fisher:
    """The diagonal Fisher information. `draws` None: all outcomes, exactly; one draw for texts."""

    kind = "fisher"
    single = True

    def __init__(self, draws: int | None = None, seed: int = 0) -> None:
        self.draws = draws
        self.seed = seed

    def shapes(self, model: Predictor, batch: Any) -> Shapes:
        """One entry per entry of every parameter."""
        return parameter_shapes(model)

    def add(self, model: Predictor, batch: Any, first: int, sums: Sums) -> None:
        """Add the squared gradients of each example."""
        values = current(model)
        leaves = {name: values[name].requires_grad_() for name in sums.totals if name in values}
        logits = model.logits(batch, leaves)
        logs = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
        for row, log in enumerate(logs):
            if log.ndim == 2:
                log = log[counted_positions(batch, logs)[row]]
            outcomes, weights = self._outcomes(log, first + row)
            for start, stop, gradients in gradients_of(outcomes, leaves):
                for name, gradient in gradients.items():
                    if gradient is not None:
                        squares = gradient.to(weights.dtype).square()
                        sums.totals[name] += torch.tensordot(weights[start:stop], squares, dims=1)
        for name in sums.totals:
            sums.counts[name] += len(logs)

    def _outcomes(self, log: Tensor, example: int) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of the outcomes to differentiate, and the weight of each."""
        if log.ndim == 1 and self.draws is None:
            probability = log.detach().exp()
            possible = probability.nonzero().flatten()
            return log[possible], probability[possible]
        positions, draws = log if log.ndim == 2 else log[None], self.draws or 1
        cumulative = positions.detach().double().exp().cumsum(dim=-1)
        bits = uniform_bits(stream_key(self.seed, "fisher", str(example)), 0, len(positions) * draws)
        shares = torch.from_numpy((bits + 0.5) / 2.0**32).to(cumulative).reshape(len(positions), draws)
        places = torch.searchsorted(cumulative, shares * cumulative[:, -1:], right=True)
        if log.ndim == 1:
            drawn, counts = torch.unique(places[0], return_counts=True)
            return log[drawn], counts.to(log.dtype) / draws
        return positions.gather(1, places).sum(dim=0), log.new_full((draws,), 1.0 / draws)
