"""DELLA (linear): drop at random with a probability by rank of magnitude, rescale, add to the base.

    theta = base + lambda * sum_i w_i sparse(theta_i - base)        (sum divided by sum_i w_i where normalize)

The drop is della's; there is no vote. The expected task vector is unchanged with rescale "inverse", so this equals
task arithmetic plus noise that spares large changes. "l1" is mergekit's rescaling.

Use: as dare_linear, when large changes must more likely survive.
Avoid: large changes at low density.

Source: Deep et al. 2024, DELLA-Merging, arXiv 2406.11617; the variant without a vote is mergekit's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from consilience.merging.method import Between, PerExpert, Share, each, method
from consilience.merging.sparsify_ranked import MagnitudeRankedDrop
from consilience.merging.steps import Steps
from consilience.merging.task_vectors import task_vector_steps


@method(base="required", laws=("idempotent", "zero_weight", "permutation", "scale"))
def della_linear(
    weight: PerExpert[float] = each(1.0),
    density: PerExpert[Share] = each(0.5),
    epsilon: PerExpert[Annotated[float, Between(0.0, 0.5)]] = each(0.15),
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: Literal["inverse", "l1", "none"] = "inverse",
) -> Steps:
    """Drop by rank, rescale, add.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a = {"w": np.zeros(3, np.float32)}, {"w": np.float32([1, 2, 3])}
    >>> merge_state_dicts("della_linear", base, {"a": a}, density=1.0, weight=0.5)["w"].tolist()
    [0.5, 1.0, 1.5]

    weight: coefficient of each task vector. density: mean probability of keeping an entry, 0 to 1. epsilon: how far
    the probability goes below and above the density. lambda: coefficient of the sum. normalize: divide by the sum of
    the weights. rescale: how kept entries are scaled up.
    """
    drop = (MagnitudeRankedDrop(density, epsilon, rescale),)
    return task_vector_steps(weight, lambda_, sparsifiers=drop, normalize=normalize)
