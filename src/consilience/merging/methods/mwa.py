"""MWA, metrics-weighted averaging: checkpoints of one run, weighted by training loss or by step, sharpened by a power.

    theta = sum_i w_i theta_i,   w_i = r_i / sum_j r_j,   r_i = (1 / loss_i)^p, step_i^p, or value_i^p or value_i^-p

p is `penalty_factor`: 0 is the uniform average, 1 weighs in proportion, a large one picks the best checkpoint. Made for
adapters (LoRA) saved along one run: name adapter folders as experts, without a base, and factors are averaged one by
one (the published way). With their base as `base` (and `output: {adapter: {rank: R}}`) the products B A are averaged
and factored again, which is what checkpoints with other ranks or scales, and those of different runs, need. Values come
from the recipe, from a JSON file of {expert: number} (`value: losses.json`), or from trainer_state.json, expert.json or
trajectory.json beside the checkpoints, where losses are means over the last `window` logged ones; a notice says which.

A reconstruction: the paper's formula was not found; known is that weights follow loss or steps and one penalty factor.

Use: checkpoints of one run, above all adapters, with a learning rate high enough that they wander.
Avoid: losses of single batches (neighbouring checkpoints differ by less); checkpoints of different runs without a base.

Source: Parameter-Efficient Checkpoint Merging via Metrics-Weighted Averaging, 2025, arXiv 2504.18580 (abstract only).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.method import Between, PerExpert, Recorded, method
from consilience.merging.steps import Chunk, Statistics, Steps

Metric = Literal["loss", "steps", "custom"]


@method(base="optional", laws=("idempotent", "permutation", "scale"))
def mwa(
    value: PerExpert[Annotated[float, Between(0.0), Recorded("metric", "window")]],
    metric: Metric = "loss",
    higher_is_better: bool = False,
    penalty_factor: Annotated[float, Between(0.0)] = 1.0,
    window: Annotated[int, Between(1)] = 10,
) -> Steps:
    """Average by a recorded metric.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> early, late = {"w": np.float32([0.0])}, {"w": np.float32([4.0])}
    >>> merge_state_dicts("mwa", None, {"early": early, "late": late}, value={"early": 3, "late": 1})["w"].tolist()
    [3.0]

    value: the loss, step or other number of each expert, above 0 (a step may be 0: weight 0). metric: what it is; a
    lower loss and a later step are better. higher_is_better: which way a custom metric goes. penalty_factor: the
    power p, 0 or more. window: how many logged losses are averaged where values come from a log.
    """
    weights = _weights(value, penalty_factor, rising=metric == "steps" or (metric == "custom" and higher_is_better))

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        if chunk.start == 0:
            known["facts"] = {"weights": weights}
            if not all(value) and not all(weights):
                warnings.warn("mwa: a checkpoint of step 0 (value 0) has weight 0", stacklevel=2)
        inputs = chunk.experts if chunk.base is None else chunk.deltas
        kernels().weighted_sum(inputs, chunk.numbers(weights), chunk.out)
        if chunk.base is not None:
            kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    return Steps(apply, deltas=True)


def _weights(values: Sequence[float], power: float, *, rising: bool) -> list[float]:
    """Return the weights, from logarithms so that no power overflows. Raises ValueError for what has none."""
    if power and not all(values) and (not rising or not any(values)):
        wanted = "one above 0" if rising else "all above 0"
        raise ValueError(f"value: {list(values)} has no weights; expected {wanted}")
    exponent = power if rising else -power
    logarithms = [exponent * math.log(v) if v else (-math.inf if power else 0.0) for v in values]
    largest = max(logarithms)
    ratios = [math.exp(entry - largest) for entry in logarithms]
    total = math.fsum(ratios)
    return [ratio / total for ratio in ratios]
