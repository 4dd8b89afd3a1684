"""TALL-masks: one vector for all tasks, and a mask per task that finds the single expert in it again.

    tau_MTL = sum_t tau_t, tau_t = theta_t - base    (merge "ties": the `density` share of each task vector that is
                                                      largest over the whole model, agreeing entries summed)
    mask_t  = |tau_t| > tall_mask_lambda_t * |tau_MTL - tau_t|
    model of task t = base + mask_t * tau_MTL        without a task: base + tau_MTL

A weight belongs to a task where the task's own change outweighs what the others add to it. Base, one vector and a bit
per weight and task then stand for all experts (a bundle keeps them). The sum without a mask is
unscaled and rarely a good model by itself. With tasks that change the same weights in opposite ways masks keep little.

The authors choose each lambda_t from 0.2, 0.3, ..., 0.6 by the validation accuracy of the task's model, the first best
one winning. 0.4, the middle of that grid, is our choice for when there is no such data.

Use: keeping every expert's ability in one vector and one bit per weight and task (see bundles).
Avoid: one model for all tasks: that is consensus.

Source: Wang et al. 2024, Localizing Task Information for Improved Model Merging and Compression, arXiv 2405.07813;
code nik-dim/tall_masks.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.localisation import Localisation, MultiTask
from consilience.merging.method import Chosen, PerExpert, Share, each, method
from consilience.merging.steps import Chunk, Statistics, Steps


@method(base="required", laws=("idempotent", "permutation", "scale"))
def tall_mask(
    task: Chosen = -1,
    merge: MultiTask = "task_arithmetic",
    density: Share = 0.2,
    tall_mask_lambda: PerExpert[float] = each(0.4),
) -> Steps:
    """Sum, then mask.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.float32([0, 0, 0])}
    >>> a, b = {"w": np.float32([3, 0, 1])}, {"w": np.float32([1, 2, 8])}
    >>> merge_state_dicts("tall_mask", base, {"a": a, "b": b}, task="a")["w"].tolist()
    [4.0, 0.0, 0.0]

    task: the expert to reconstruct; none: the multi-task model. merge: how the multi-task vector is made. density:
    share of each task vector that "ties" keeps, 0 to 1. tall_mask_lambda: threshold of each expert, above 0.
    """
    localisation = Localisation(merge, density, tall_mask_lambda)

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        total = localisation.vector(chunk, known)
        if task >= 0:
            kernels().apply_keep(total, localisation.mask(chunk, total, task), 1.0)
        kernels().add_base(total, chunk.base, 1.0)
        return total

    return Steps(apply, localisation.surveys, localisation.scope, shared=localisation.shared, deltas=True)
