"""DOGE: task arithmetic with one learned change added to all task vectors, away from what the tasks share.

Per weight matrix (m x n), with tau_i = theta_i - base:
1. lambda_i = eta / ||tau_i||_F, S = sum_i lambda_i tau_i, L = sum_i lambda_i;
2. shared subspace: the k = int(min(m, n) / T) leading left singular vectors of each tau_i side by side; B = the
   leading int(min(m, n) / subspace) left singular vectors of that;
3. Delta, from 0: minimise sum_j sum_rows (sum_columns(tau_j o (tau_j - S - L Delta)))^2 by Adam on the gradient g
   without its shared part, g - B B^T g (Adam rescales entries, so Delta itself is not orthogonal to B);
4. theta = base + sum_i lambda_i ((tau_i + Delta) o mask_i), with mask_i the entries of tau_i among the `density` share
   of largest magnitude over all merged matrices together (one more than the share; all that equal the last).

Coefficients above 1 warn, and are in the manifest with each matrix's objective before and after. Task vectors near
1e-3 give gradients below Adam's eps of 1e-8, and Delta hardly moves. Matrices smaller than the number of experts or
`subspace` have no shared subspace. An expert that does not change a matrix has coefficient 0 there. Memory: the task
vectors of all experts for one matrix, about six times the matrix, and what the eigenvectors of its smaller side take in
float64 (ten times a square matrix).

Use: several fully fine-tuned experts and nothing to tune on; about as good as task arithmetic with a tuned lambda.
Avoid: layers of other sizes than eta was made for (0.07 suits ||tau|| of 0.2 to 0.5 per matrix) without trying eta.

Source: Wei et al. 2025, Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent, arXiv 2501.01230;
code tanganke/fusion_bench (method doge_ta). The masks follow the code, which ranks |tau|; its documentation says
|tau + Delta|.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.matrix import matrices, rest_steps
from consilience.merging.method import Between, PerExpert, Regex, Share, each, method
from consilience.merging.optimise import NOT_LAYERS, TOLERANCE, adam, record_objective, squared_norm
from consilience.merging.selection import Selection
from consilience.merging.steps import Chunk, Statistics, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.merging.whole import Whole


@method(base="required", laws=("idempotent", "permutation"))
def doge(
    eta: Annotated[float, Between(0.0)] = 0.07,
    density: PerExpert[Share] = each(0.3),
    subspace: Annotated[int, Between(1, 1_000_000)] = 6,
    steps: Annotated[int, Between(0, 1_000_000)] = 400,
    learning_rate: Annotated[float, Between(0.0)] = 1e-4,
    include: Regex = "",
    exclude: Regex = NOT_LAYERS,
) -> Steps:
    """Learn a common change by projected gradient steps, then add the largest entries.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros((2, 2), np.float32)}
    >>> a, b = {"w": np.float32([[0.3, 0], [0, 0.4]])}, {"w": np.float32([[0, 0.4], [0.3, 0]])}
    >>> merge_state_dicts("doge", base, {"a": a, "b": b}, density=1, steps=0)["w"].astype(float).round(3).tolist()
    [[0.042, 0.056], [0.042, 0.056]]

    eta: coefficient of each task vector, before it is divided by its norm. density: share of the entries kept over
    all merged matrices, 0 to 1. subspace: the part of the rank that tasks share is 1 / subspace. steps, learning_rate:
    of Adam. include, exclude: which matrices are merged; all other tensors stay as in the base.
    """
    selects = matrices(include, exclude)

    def optimised(whole: Whole, known: Statistics) -> Tensor:
        import torch

        vectors = torch.empty(whole.count, *whole.shape, dtype=whole.dtype, device=whole.device)
        for expert, values in enumerate(vectors):
            values.copy_(whole.delta(expert))
        norms = [math.sqrt(squared_norm(values)) for values in vectors]
        changed = [expert for expert, norm in enumerate(norms) if norm > 0]
        if not changed:
            return whole.base()
        vectors = vectors if len(changed) == whole.count else vectors[changed]
        coefficients = [eta / norms[expert] for expert in changed]
        rank = min(whole.shape)
        shared = shared_subspace(vectors, rank // whole.count, rank // subspace)
        change, before, after = common_change(vectors, coefficients, shared, learning_rate, steps)
        told = {whole.expert_names[e]: c for e, c in zip(changed, coefficients, strict=True)}
        record_objective(whole, known, before, after, {"lambda": told, "subspace": shared.shape[1]})
        if max(coefficients) > 1:
            warnings.warn(
                f'doge: eta {eta:g} gives coefficients above 1 in some matrices (their "lambda" in the facts), because '
                "their task vectors are small: the result may be far from all experts; use a smaller eta",
                stacklevel=2,
            )
        merged = whole.base()
        for expert, coefficient, values in zip(changed, coefficients, vectors, strict=True):
            (limit,) = known["magnitude"][expert]
            added = values + change
            if limit is not None:
                added[values.abs().float() < float(np.uint32(limit.pattern).view(np.float32))] = 0
            merged.add_(added, alpha=coefficient)
        return merged

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        return rest_steps("base", len(chunk.experts), 1.0)(chunk, known)

    largest = Selection(
        "magnitude",
        len(density),
        lambda chunk, known: chunk.deltas,
        lambda expert, size, filled: (min(int(density[expert] * size) + 1, size),),
    )
    return Steps(
        apply,
        largest.surveys(),
        "global",
        shared=("density", *density),
        deltas=True,
        whole=optimised,
        selects=selects,
        surveyed=selects,
        tolerance=TOLERANCE,
    )


def shared_subspace(task_vectors: Tensor, rank: int, size: int) -> Tensor:
    """Return orthonormal columns that span the subspace shared by task vectors (experts, rows, columns).

    `rank` left singular vectors of each take part, `size` are returned; fewer where there are no more.
    """
    import torch

    from consilience.merging.singular import leading

    sides = [leading(task_vector, rank).left for task_vector in task_vectors]
    return leading(torch.cat(sides, 1), size).left


def common_change(
    task_vectors: Tensor, coefficients: Sequence[float], shared: Tensor, learning_rate: float, steps: int
) -> tuple[Tensor, float, float]:
    """Return the change Delta that is common to task vectors (experts, rows, columns), and the objective before, after.

    `shared` (rows, any) are the directions that gradients are freed from.
    """
    import torch

    total = math.fsum(coefficients)
    weighted = torch.einsum("e,erc->rc", torch.tensor(coefficients).to(task_vectors), task_vectors)
    aims = torch.stack([torch.linalg.vecdot(values, values - weighted) for values in task_vectors])

    def residuals(change: Tensor) -> Tensor:
        return aims - total * torch.stack([torch.linalg.vecdot(values, change) for values in task_vectors])

    def gradient(change: Tensor, out: Tensor) -> None:
        out.zero_()
        for values, residual in zip(task_vectors, residuals(change), strict=True):
            out.addcmul_(values, residual[:, None], value=-2 * total)
        if shared.shape[1]:
            out.addmm_(shared, shared.T @ out, alpha=-1.0)

    change = torch.zeros_like(weighted)
    adam(gradient, change, learning_rate, steps)
    before = squared_norm(aims)
    return change, before, squared_norm(residuals(change))
