"""DELLA: drop at random with a probability by rank of magnitude, rescale, elect a sign, combine what agrees.

1. in each row (last dimension) of a task vector keep entry j with probability
   p_j = density - epsilon + 2 epsilon (r_j - 1) / (n - 1), r_j its rank by magnitude, n the row's length;
2. rescale what is kept; 3. weigh, elect a sign per position, combine the deltas that agree (see ties);
4. theta = base + lambda * combination.

Against DARE, large changes survive more often. It needs 0 < density - epsilon and density + epsilon < 1 (density 1
keeps everything, 0 nothing). Masks are a function of (seed, tensor, expert, index). rescale "inverse" divides by each
entry's own p, as the paper does; "l1" restores each tensor's sum of magnitudes, as mergekit does. Fails like ties with
many experts at low density; with "inverse" and a small density - epsilon, rare small entries come out very large.

Use: as dare_ties, when large changes must more likely survive.
Avoid: large changes at low density.

Source: Deep et al. 2024, DELLA-Merging, arXiv 2406.11617; mergekit for "l1".
"""

from __future__ import annotations

from typing import Annotated, Literal

from consilience.merging.method import Between, PerExpert, Share, each, method
from consilience.merging.sparsify_ranked import MagnitudeRankedDrop
from consilience.merging.steps import Steps
from consilience.merging.task_vectors import MergeFunction, task_vector_steps


@method(base="required", laws=("idempotent", "zero_weight", "permutation", "scale"))
def della(
    weight: PerExpert[float] = each(1.0),
    density: PerExpert[Share] = each(0.5),
    epsilon: PerExpert[Annotated[float, Between(0.0, 0.5)]] = each(0.15),
    lambda_: float = 1.0,
    merge_function: MergeFunction = "mean",
    rescale: Literal["inverse", "l1", "none"] = "inverse",
) -> Steps:
    """Drop by rank, rescale, elect, merge.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a = {"w": np.zeros(3, np.float32)}, {"w": np.float32([1, 2, 3])}
    >>> merged = merge_state_dicts("della", base, {"a": a}, density=0.5, epsilon=0.25, seed=3)["w"]
    >>> set(merged.tolist()) <= {0.0, 1 / 0.25, 2 / 0.5, 3 / 0.75}
    True

    weight: coefficient before the vote. density: mean probability of keeping an entry, 0 to 1. epsilon: how far the
    probability goes below and above the density. lambda: coefficient of the merged task vector. merge_function: how
    agreeing deltas combine. rescale: how kept entries are scaled up.
    """
    drop = (MagnitudeRankedDrop(density, epsilon, rescale),)
    return task_vector_steps(weight, lambda_, sparsifiers=drop, merge_function=merge_function)
