"""TIES: trim each task vector, elect a sign per weight, average the deltas that agree with it.

1. keep the `density` share of largest magnitude of each task vector (per tensor, or over the whole model);
2. weigh, and elect at each position the sign of the sum (a sum of zero elects plus; with global scope the sign that
   most positions elect);
3. combine the non-zero deltas of that sign: weighted mean, sum, or the largest;
4. theta = base + lambda * combination.

At the threshold the lowest index is kept. Scope "global" is the authors' procedure, which keeps one entry more than
the share; scope "tensor" is mergekit's.

Use: several experts whose updates cancel each other.
Avoid: very low density with many experts, which loses general ability; two nearly equal experts gain nothing.

Source: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708; code prateeky2806/ties-merging.
"""

from __future__ import annotations

from typing import Literal

from consilience.merging.method import PerExpert, Share, each, method
from consilience.merging.sparsify import Magnitude
from consilience.merging.steps import Steps
from consilience.merging.task_vectors import MergeFunction, task_vector_steps


@method(base="required", laws=("idempotent", "zero_weight", "permutation", "scale"))
def ties(
    weight: PerExpert[float] = each(1.0),
    density: PerExpert[Share] = each(0.2),
    lambda_: float = 1.0,
    merge_function: MergeFunction = "mean",
    scope: Literal["tensor", "global"] = "tensor",
) -> Steps:
    """Trim, elect, merge.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.float32([0, 0, 0, 0])}
    >>> a, b = {"w": np.float32([4, 3, 1, 0])}, {"w": np.float32([2, -5, 0, 1])}
    >>> merge_state_dicts("ties", base, {"a": a, "b": b}, density=0.5)["w"].tolist()
    [3.0, -5.0, 0.0, 0.0]

    weight: coefficient before the vote. density: share of entries kept, 0 to 1 (at least one entry is kept when it is
    above 0). lambda: coefficient of the merged task vector. merge_function: how agreeing deltas combine.
    """

    def count(expert: int, size: int) -> int:
        share = density[expert]
        if scope == "global":
            return min(int(share * size) + 1, size)
        return max(int(share * size), 1 if share > 0 else 0)

    trim = (Magnitude(len(density), count, local=scope == "tensor"),) if min(density) < 1 else ()
    return task_vector_steps(
        weight, lambda_, sparsifiers=trim, merge_function=merge_function, scope=scope, shared=("density", *density)
    )
