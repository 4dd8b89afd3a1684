"""DARE with TIES' consensus: drop entries at random, rescale, elect a sign, combine what agrees.

1. keep each entry with probability `density` and rescale (see dare_linear);
2. where `trim` is above 0: drop that share of smallest magnitudes over the whole model, as the authors' code does
   before TIES (zeros made by step 1 count);
3. weigh, elect a sign per position, combine the deltas that agree (see ties);
4. theta = base + lambda * combination.

With trim 0 and merge_function "sum" this is mergekit's dare_ties.

Use: several experts with small changes that cancel each other.
Avoid: large changes, or a wish for the same result without a seed.

Source: Yu et al. 2023, Language models are super Mario, arXiv 2311.03099; code yule-BUAA/MergeLM.
"""

from __future__ import annotations

from typing import Literal

from consilience.merging.method import PerExpert, Share, each, method
from consilience.merging.sparsify import Magnitude, RandomDrop, Sparsifier
from consilience.merging.steps import Steps
from consilience.merging.task_vectors import MergeFunction, task_vector_steps


@method(base="required", laws=("idempotent", "zero_weight", "permutation", "scale"))
def dare_ties(
    weight: PerExpert[float] = each(1.0),
    density: PerExpert[Share] = each(0.5),
    lambda_: float = 1.0,
    merge_function: MergeFunction = "sum",
    rescale: Literal["inverse", "l1", "none"] = "inverse",
    trim: Share = 0.0,
) -> Steps:
    """Drop at random, rescale, elect, merge.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a = {"w": np.zeros(2, np.float32)}, {"w": np.float32([1, -1])}
    >>> merge_state_dicts("dare_ties", base, {"a": a, "b": a}, density=1.0)["w"].tolist()
    [2.0, -2.0]

    weight: coefficient before the vote. density: probability of keeping an entry, 0 to 1. lambda: coefficient of the
    merged task vector. merge_function: how agreeing deltas combine. rescale: how kept entries are scaled up.
    trim: share of smallest magnitudes dropped afterwards, over the whole model.
    """
    chain: list[Sparsifier] = [RandomDrop(density, rescale)]
    if trim > 0:
        chain.append(Magnitude(len(density), lambda expert, size: min(size - int(size * trim) + 1, size)))
    scope: Literal["tensor", "global"] = "global" if trim > 0 else "tensor"
    return task_vector_steps(
        weight,
        lambda_,
        sparsifiers=chain,
        merge_function=merge_function,
        scope=scope,
        shared=("density", *density, "trim", trim),
    )
