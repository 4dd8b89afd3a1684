"""Iso-CTS: a common subspace of all experts, room for what is each expert's own, all directions equally long.

For each matrix of m x n with r = min(m, n), T experts and task matrices tau_i = theta_i - theta_0:

1. tot = round((r - int(r * common_space_fraction)) / T) * T directions are set aside, s = tot / T for each expert (half
   rounds to even; never more than there are);
2. common: the r - tot leading singular triplets U_c, S_c, V_c of sum_i tau_i;
3. own: the s leading triplets of each residual tau_i - U_c U_c^T tau_i;
4. U = [U_1 .. U_T, U_c], S and V likewise; theta = theta_0 + alpha * mean(S) * P(U) P(V), P(X) the polar factor, the
   nearest matrix to X with orthonormal columns (rows for V), and the mean over all r values.

All other tensors get alpha times the mean of the task vectors (or stay, `rest: base`).

One expert has nothing to share: it comes out as it is (steps 1 to 4 would flatten its spectrum). Directions that are
rounding (1e-6 of the largest) are left out, though they count in the mean. For language models exclude embeddings and
the head.

Use: many experts (14 and more), where Iso-C's common directions leave no room for the rare ones.
Avoid: without data to choose alpha by (the paper searches it); few experts, for which Iso-C is as good and cheaper.

Source: Marczak et al. 2025, No Task Left Behind, arXiv 2502.04959; code danielm1405/iso-merging.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consilience.merging.matrix import Rest
from consilience.merging.method import Regex, Share, method
from consilience.merging.spectral import TaskMatrices, spectral_steps
from consilience.merging.steps import Statistics, Steps

if TYPE_CHECKING:
    from torch import Tensor


@method(base="required", laws=("idempotent", "permutation", "scale"))
def iso_cts(
    alpha: float = 1.0,
    common_space_fraction: Share = 0.8,
    include: Regex = "",
    exclude: Regex = ".*text_projection",
    rest: Rest = "mean",
) -> Steps:
    """Common directions and each expert's own, equally long.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros((3, 3), np.float32)}
    >>> a, b = {"w": np.diag(np.float32([4, 2, 0]))}, {"w": np.diag(np.float32([4, 0, 2]))}
    >>> merge_state_dicts("iso_cts", base, {"a": a, "b": b}, common_space_fraction=0.4)["w"].round(4).tolist()
    [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]]

    alpha: coefficient of the merged change. common_space_fraction: share of the directions that are common, 0 to 1.
    include, exclude: which matrices are decomposed. rest: what the other tensors get, the mean of the task vectors
    (times alpha) or nothing.
    """

    def change(tasks: TaskMatrices, known: Statistics) -> Tensor | None:
        if tasks.count == 1:
            return tasks[0]
        room, share = tasks.smaller, int(tasks.smaller * common_space_fraction)
        own = min(round((room - share) / tasks.count), room // tasks.count)
        return _merged(tasks, room - own * tasks.count, own)

    return spectral_steps(change, alpha, include, exclude, rest)


def _merged(tasks: TaskMatrices, common: int, own: int) -> Tensor:
    """Return mean(S) P(U) P(V) of `common` directions of the sum and `own` directions of each expert."""
    import torch

    from consilience.merging.singular import RANK, complement, leading, polar

    shared = leading(tasks.total(), common)
    # residuals have no part in U_c: where what is left of the space is small they are looked at within it alone
    rest = complement(shared.left) if tasks.rows <= tasks.columns else None
    found = []
    for index in range(tasks.count if own else 0):
        task = tasks[index]
        least = RANK * float(torch.linalg.vector_norm(task, dtype=torch.float64))  # below, it is rounding of the task
        if rest is None:
            task.addmm_(shared.left, shared.left.T @ task, alpha=-1.0)
        found.append(leading(task if rest is None else rest.T @ task, own, least))
    tasks.forget()
    right = polar(torch.cat([*(triplets.right for triplets in found), shared.right]))[0]
    left = shared.left
    if found:  # orthogonal to U_c, so that P acts on both apart
        owned = polar(torch.cat([triplets.left for triplets in found], 1))[0]
        left = torch.cat([owned if rest is None else rest @ owned, left], 1)
    total = float(shared.values.sum()) + sum(float(triplets.values.sum()) for triplets in found)
    made: Tensor = left @ right
    return made.mul_(total / tasks.smaller)
