"""Model Breadcrumbs with TIES' consensus: drop outliers and small changes, elect a sign, combine what agrees.

1. mask each task vector as breadcrumbs does (same `definition`, same limits);
2. weigh, elect a sign per position, combine the deltas that agree (see ties);
3. theta = base + lambda * combination.

The vote helps where the remaining entries of several experts overlap and disagree; at the default density few do.
It fails where breadcrumbs does, on short rows.

Use: many experts with outliers and conflicting signs.
Avoid: one or two experts, where a vote has little to decide.

Source: Davari and Belilovsky 2023, Model Breadcrumbs, arXiv 2312.06795; with the vote as in mergekit.
"""

from __future__ import annotations

from consilience.merging.method import PerExpert, Share, each, method
from consilience.merging.sparsify_band import Definition, breadcrumbs_band
from consilience.merging.steps import Steps
from consilience.merging.task_vectors import MergeFunction, task_vector_steps


@method(base="required", laws=("idempotent", "zero_weight", "permutation", "scale"))
def breadcrumbs_ties(
    weight: PerExpert[float] = each(1.0),
    density: PerExpert[Share] = each(0.15),
    gamma: PerExpert[Share] = each(0.006),
    lambda_: float = 0.2,
    merge_function: MergeFunction = "sum",
    definition: Definition = "official",
) -> Steps:
    """Mask outliers and small changes, elect, merge.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros(4, np.float32)}
    >>> a, b = {"w": np.float32([9, 3, 2, 1])}, {"w": np.float32([2, -4, 8, 0])}
    >>> merge_state_dicts("breadcrumbs_ties", base, [a, b], density=0.5, gamma=0.25, lambda_=1.0)["w"].tolist()
    [2.0, -4.0, 2.0, 0.0]

    weight: coefficient before the vote. density: share kept, 0 to 1. gamma: share of outliers dropped, 0 to 1.
    lambda: coefficient of the merged task vector. merge_function: how agreeing deltas combine. definition: see
    breadcrumbs.
    """
    band = (breadcrumbs_band(definition, density, gamma),)
    return task_vector_steps(weight, lambda_, sparsifiers=band, merge_function=merge_function)
