"""TIES arithmetic: task arithmetic on task vectors that TIES has trimmed and rid of conflicts of sign.

1. keep the `density` share of largest magnitude of each task vector, over the whole model (one entry more, as the
   authors' code does; at the threshold the lowest index is kept);
2. elect at each position the sign of the sum of what is left; a sum of zero takes the sign that most positions elect;
3. set the entries of another sign to zero;
4. theta = base + lambda * sum_i w_i tau_i.

Unlike in `ties`, weights do not vote and nothing is averaged, so the result is linear in the coefficients: what
AdaMerging++ learns coefficients for. `coefficients` by tensor, piece or group take the place of weight and lambda.

Use: tuned or learnt coefficients for several experts whose updates cancel each other.
Avoid: untuned lambda 1 with many experts: the sum overshoots as that of task arithmetic does.

Source: Yang et al. 2024, AdaMerging, arXiv 2310.02575; code EnnengYang/AdaMerging; Yadav et al. 2023, arXiv 2306.01708.
"""

from __future__ import annotations

from consilience.merging.method import PerExpert, Share, each, method
from consilience.merging.sparsify import Magnitude
from consilience.merging.steps import Steps
from consilience.merging.task_vectors import Elected, task_vector_steps


@method(base="required", laws=("idempotent", "permutation", "scale"))
def ties_arithmetic(
    weight: PerExpert[float] = each(1.0), density: PerExpert[Share] = each(0.2), lambda_: float = 1.0
) -> Steps:
    """Trim, elect, then add weighted task vectors to the base.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.float32([0, 0, 0, 0])}
    >>> a, b = {"w": np.float32([4, 3, 1, 0])}, {"w": np.float32([2, -5, 0, 1])}
    >>> merge_state_dicts("ties_arithmetic", base, {"a": a, "b": b}, density=0.5)["w"].tolist()
    [6.0, -5.0, 1.0, 1.0]

    weight: coefficient of each task vector. density: share of entries kept, 0 to 1. lambda: coefficient of their sum.
    """

    def count(expert: int, size: int) -> int:
        return min(int(density[expert] * size) + 1, size)

    chain = (Magnitude(len(density), count), Elected(len(density)))
    return task_vector_steps(weight, lambda_, sparsifiers=chain, scope="global", shared=("density", *density))
