"""Task arithmetic: add the experts' task vectors to the base.

    theta = base + lambda * sum_i w_i (theta_i - base)        (sum divided by sum_i w_i where normalize)

Use: the strongest simple baseline, once lambda is tuned (0.3 to 0.5 for several experts); adding and subtracting
abilities.
Avoid: untuned lambda 1 with many experts: the sum overshoots.

Source: Ilharco et al. 2022, Editing models with task arithmetic, arXiv 2212.04089.
"""

from __future__ import annotations

from consilience.merging.method import PerExpert, each, method
from consilience.merging.steps import Steps
from consilience.merging.task_vectors import task_vector_steps


@method(base="required", laws=("idempotent", "zero_weight", "permutation", "scale"))
def task_arithmetic(weight: PerExpert[float] = each(1.0), lambda_: float = 1.0, normalize: bool = False) -> Steps:
    """Add weighted task vectors to the base.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a, b = {"w": np.float32([1, 1])}, {"w": np.float32([2, 1])}, {"w": np.float32([1, 3])}
    >>> merge_state_dicts("task_arithmetic", base, {"a": a, "b": b}, **{"lambda": 0.5})["w"].tolist()
    [1.5, 2.0]

    weight: coefficient of each task vector. lambda: coefficient of their sum. normalize: divide by the sum of weights.
    """
    return task_vector_steps(weight, lambda_, normalize=normalize)
