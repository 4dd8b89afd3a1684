"""Sens: task vectors weighed layer by layer by how much each expert's loss depends on the layer (Sens-Merging).

    alpha_i^l = s_i^l / |s_i|,      s_i^l = mean over examples of sum |theta * dLoss/dtheta| in layer l of expert i
    sigma_i^l = softmax over i of (alpha_i^l * tau_i / temperature),      tau_i = distance_i / sum_j distance_j
    theta = base + lambda * N * sum_i sigma_i^l (theta_i - base),      N the number of experts

`distance` of an expert is the sum over the other experts' data of the mean L2 distance between its logits and theirs;
`consilience statistics` measures it with the sensitivities. A high temperature gives task arithmetic.

A reconstruction: the authors published no code, and the formulas come from the abstract, reviews and a third party.
lambda is the coefficient of task arithmetic, called alpha in the Long-to-Short study.

Use: two or three experts that need different layers, with about 100 examples each.
Avoid: few examples, which make sensitivities noisy; many experts: with equal scores it is task arithmetic.

Needs `aux: {sensitivity: {EXPERT: FOLDER}}`: one number per tensor, summed over each layer here.

Source: Liu et al. 2025, arXiv 2502.12420; Long-to-Short, arXiv 2503.20641.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

from numpy.typing import NDArray

from consilience.errors import WorkError
from consilience.merging.kernels import kernels
from consilience.merging.method import Aux, Between, PerExpert, Regex, each, method
from consilience.merging.steps import Chunk, Statistics, Steps
from consilience.merging.whole import Whole

LAYER = r"(?:.*?\.)?\d+(?=\.)|.*(?=\.)|.*"
"""A tensor's name up to its first number; its module where it has none."""


@method(
    base="required",
    laws=("idempotent", "permutation", "scale"),
    aux={"sensitivity": Aux(per_expert=True, shape="scalar")},
)
def sens(
    distance: PerExpert[Annotated[float, Between(0.0)]] = each(1.0),
    temperature: Annotated[float, Between(1e-6)] = 1.0,
    lambda_: float = 1.0,
    layer: Regex = LAYER,
) -> Steps:
    """Weigh task vectors by sensitivity.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"0.w": np.zeros(1), "1.w": np.zeros(1)}
    >>> a, b = {"0.w": np.ones(1), "1.w": np.ones(1)}, {"0.w": -np.ones(1), "1.w": -np.ones(1)}
    >>> measured = {"a": {"0.w": 3.0, "1.w": 4.0}, "b": {"0.w": 4.0, "1.w": 3.0}}
    >>> merged = merge_state_dicts("sens", base, {"a": a, "b": b}, aux={"sensitivity": measured})
    >>> merged["0.w"].round(3).tolist(), merged["1.w"].round(3).tolist()
    ([-0.1], [0.1])

    distance: of each expert's logits to the others', in any unit. temperature: of the softmax. lambda: coefficient of
    the task vectors. layer: the part of a tensor's name that it matches is its layer.
    """
    if not any(distance):
        raise ValueError("distance: all are 0, so that no expert differs from the others; leave it out if unknown")

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        kernels().weighted_sum(chunk.deltas, chunk.numbers(known["coefficients"]), chunk.out)
        kernels().add_base(chunk.out, chunk.base, lambda_)
        return chunk.out

    survey = _SensitivitySurvey(distance, temperature, layer)
    return Steps(apply, (survey,), "global", shared=("sens", *distance, temperature, layer), deltas=True)


class _SensitivitySurvey:
    """The coefficients of each layer."""

    def __init__(self, distance: Sequence[float], temperature: float, layer: str) -> None:
        self.shares = [d / math.fsum(distance) for d in distance]
        self.temperature = temperature
        self.layer = re.compile(layer)

    def start(self) -> list[Any]:
        return []

    def add_whole(self, whole: Whole, state: Any, known: Statistics) -> None:
        found = self.layer.match(whole.tensor)
        values = []
        for i, expert in enumerate(whole.expert_names):
            number = whole.aux("sensitivity", i)
            assert number is not None, "the plan asks for every tensor"
            values.append(float(number))
            if not 0 <= values[-1] < math.inf:
                raise WorkError(
                    f"tensor {whole.tensor!r}: the sensitivity of {expert!r} is {values[-1]:g}; it is a sum of "
                    "magnitudes: gather it again"
                )
        state.extend((found[0] if found else whole.tensor, values))

    def close(self, state: Any) -> Any:
        return state

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        layers: dict[str, list[list[float]]] = {}
        for key, values in states:
            layers.setdefault(key, []).append(values)
        sums = {key: [math.fsum(column) for column in zip(*rows, strict=True)] for key, rows in layers.items()}
        squares = zip(*([s * s for s in values] for values in sums.values()), strict=True)
        norms = [math.sqrt(math.fsum(column)) or 1.0 for column in squares]
        for (key, _), statistics in zip(states, known, strict=True):
            scores = [s / n * t / self.temperature for s, n, t in zip(sums[key], norms, self.shares, strict=True)]
            exponents = [math.exp(score - max(scores)) for score in scores]
            sigma = [e / math.fsum(exponents) for e in exponents]
            statistics["coefficients"] = [len(sigma) * s for s in sigma]
            statistics["facts"] = {"sigma": sigma}
