"""Iso-C: the directions of the summed task matrices, all made equally long.

For each matrix, with the singular value decomposition sum_i tau_i = U diag(s) V of the summed task matrices
tau_i = theta_i - theta_0:

    theta = theta_0 + alpha * mean(s) * U V

All other tensors get alpha times the mean of the task vectors (or stay, `rest: base`).

Directions that only one expert has are lifted to the strength of the shared ones. The spectrum even of one expert is
flattened, which does not come out as it was. Directions with singular values below 1e-6 of the largest are rounding and
left out, though they count in the mean. For language models exclude embeddings and the head.

Use: several fully fine-tuned experts of comparable strength.
Avoid: without data to choose alpha by (the paper searches it); updates that are mostly noise, which is lifted too.

Source: Marczak et al. 2025, No Task Left Behind, arXiv 2502.04959; code danielm1405/iso-merging.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consilience.merging.matrix import Rest
from consilience.merging.method import Regex, method
from consilience.merging.spectral import TaskMatrices, spectral_steps
from consilience.merging.steps import Statistics, Steps

if TYPE_CHECKING:
    from torch import Tensor


@method(base="required", laws=("idempotent", "permutation", "scale"))
def iso_c(alpha: float = 1.0, include: Regex = "", exclude: Regex = ".*text_projection", rest: Rest = "mean") -> Steps:
    """Sum, then make all directions equally long.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros((2, 2), np.float32)}
    >>> a, b = {"w": np.float32([[6, 0], [0, 1]])}, {"w": np.float32([[0, 0], [0, 1]])}
    >>> merge_state_dicts("iso_c", base, {"a": a, "b": b})["w"].round(4).tolist()
    [[4.0, 0.0], [0.0, 4.0]]

    alpha: coefficient of the merged change. include, exclude: which matrices are decomposed. rest: what the other
    tensors get, the mean of the task vectors (times alpha) or nothing.
    """

    def change(tasks: TaskMatrices, known: Statistics) -> Tensor | None:
        from consilience.merging.singular import leading_of_product, polar

        factors = tasks.stacked_factors()
        if factors is None:
            total = tasks.total()
            tasks.forget()
            made, values = polar(total)
        else:
            found = leading_of_product(*factors, tasks.smaller)
            made, values = found.left @ found.right, found.values
        return made * (float(values.sum()) / tasks.smaller)

    return spectral_steps(change, alpha, include, exclude, rest)
