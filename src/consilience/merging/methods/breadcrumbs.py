"""Model Breadcrumbs: add task vectors without their largest and their smallest entries.

    theta = base + lambda * sum_i w_i band(theta_i - base)        (sum divided by sum_i w_i where normalize)

`band` drops the `gamma` share of largest magnitudes (outliers), then keeps the `density` share that is largest among
the rest. Four definitions are in use; they differ in where and of what the shares are taken:

- "official", the authors' code: per row (last dimension); scalars stay as they are;
- "keep_first", its other order: per row, outliers are taken out of the kept share, so density - gamma stays;
- "paper": per tensor, outliers are taken out of the kept share (the paper's beta is the share removed from below,
  1 - density here; the authors' code calls the share kept beta);
- "mergekit": per tensor, the density share stays; with density 1 nothing is masked.

The claim is that one setting found on few tasks holds as tasks are added. Fails on short rows: with fewer than
1 / density entries a row vanishes (a warning says so); per tensor at least one entry stays. At a limit the lowest
index is kept first.

Use: many experts at one setting: tuned on a few tasks, it is meant to hold as tasks are added.
Avoid: models with short rows or many small vectors, which lose all their changes with low density.

Source: Davari and Belilovsky 2023, Model Breadcrumbs, arXiv 2312.06795; code rezazzr/breadcrumbs, whose starting
values are the defaults.
"""

from __future__ import annotations

from consilience.merging.method import PerExpert, Share, each, method
from consilience.merging.sparsify_band import Definition, breadcrumbs_band
from consilience.merging.steps import Steps
from consilience.merging.task_vectors import task_vector_steps


@method(base="required", laws=("idempotent", "zero_weight", "permutation", "scale"))
def breadcrumbs(
    weight: PerExpert[float] = each(1.0),
    density: PerExpert[Share] = each(0.15),
    gamma: PerExpert[Share] = each(0.006),
    lambda_: float = 0.2,
    normalize: bool = False,
    definition: Definition = "official",
) -> Steps:
    """Mask outliers and small changes, add the rest.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a = {"w": np.zeros((2, 4), np.float32)}, {"w": np.float32([[9, 3, 2, 1], [1, 2, 3, 4]])}
    >>> merged = merge_state_dicts("breadcrumbs", base, {"a": a}, density=0.5, gamma=0.25, lambda_=1.0)
    >>> merged["w"].tolist()
    [[0.0, 3.0, 2.0, 0.0], [0.0, 2.0, 3.0, 0.0]]

    weight: coefficient of each task vector. density: share kept, 0 to 1. gamma: share of outliers dropped, 0 to 1.
    lambda: coefficient of the sum. normalize: divide by the sum of the weights. definition: see above.
    """
    band = (breadcrumbs_band(definition, density, gamma),)
    return task_vector_steps(weight, lambda_, sparsifiers=band, normalize=normalize)
