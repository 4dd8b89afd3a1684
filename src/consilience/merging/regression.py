"""The block shared by the regression means: linear layers that agree best with the experts' layers on their inputs.

For a layer with inputs X_i in expert i the merged weight minimises sum_i c_i |X_i W^T - X_i W_i^T|^2 / n_i:

    W^T = (sum_i c_i G_i)^-1 sum_i c_i G_i W_i^T,      G_i = X_i^T X_i / n_i

Sums and the solution are in float64. Directions of the inputs that no expert's data show have no solution; there a
ridge keeps the weighted mean of the experts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from consilience.errors import WorkError
from consilience.merging.kernels import kernels
from consilience.merging.matrix import matrices
from consilience.merging.steps import Chunk, Statistics, Steps
from consilience.merging.whole import Whole

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["regression_mean", "regression_steps"]

_LEAST_PIVOT = 1e-6
"""A direction whose share of its input's power is below this is not told apart from rounding of float32 Grams."""

_ROWS = 1024


def regression_mean(
    grams: Callable[[int], Tensor], weights: Callable[[int], Tensor], coefficients: Sequence[float], ratio: float
) -> tuple[Tensor, float | None]:
    """Return the merged weight (outputs, inputs) in float64, and the ridge that it took, None where none was needed.

    `grams` and `weights` give an expert's matrices and are asked again when they are needed again, so that little is
    held at once. Entries off the diagonal of the Grams are multiplied by `ratio`.
    """
    import torch

    used = [i for i, c in enumerate(coefficients) if c]
    share = math.fsum(coefficients)
    total = right = None
    for i in used:
        weight, gram = weights(i), grams(i)
        if total is None or right is None:
            total = torch.zeros_like(gram, dtype=torch.float64)
            right = torch.zeros(gram.shape[0], weight.shape[0], dtype=torch.float64, device=gram.device)
        columns = weight.T.double()
        for start in range(0, len(gram), _ROWS):
            rows = gram[start : start + _ROWS].double()
            diagonal = rows.diagonal(start).clone()
            rows *= coefficients[i] / share * ratio
            rows.diagonal(start).copy_(diagonal * (coefficients[i] / share))
            total[start : start + _ROWS] += rows
            right[start : start + _ROWS].addmm_(rows, columns)
    assert total is not None and right is not None
    solution = _solved(total, right)
    if solution is not None:
        return solution.T, None
    mean = torch.zeros_like(right)
    for i in used:
        mean.add_(weights(i).T, alpha=coefficients[i] / share)
    power = float(total.diagonal().mean())
    for exponent in range(-6, 0):
        ridge = power * 10.0**exponent
        if not ridge:
            break
        ridged = total.clone()
        ridged.diagonal().add_(ridge)
        solution = _solved(ridged, right + ridge * mean, least=0.0)
        if solution is not None:
            return solution.T, ridge
    return mean.T, power


def _solved(total: Tensor, right: Tensor, least: float = _LEAST_PIVOT) -> Tensor | None:
    """Return the solution, or None where the matrix is singular to working precision."""
    import torch

    diagonal = total.diagonal()
    if not bool((diagonal > 0).all()):
        return None
    scale = diagonal.rsqrt()
    factor, info = torch.linalg.cholesky_ex((total * scale).mul_(scale[:, None]))
    if int(info) or not bool((factor.diagonal().square() > least).all()):
        return None
    solution: Tensor = torch.cholesky_solve(right * scale[:, None], factor).mul_(scale[:, None])
    return solution


def regression_steps(kind: str, weight: Sequence[float], ratio: float, include: str, exclude: str) -> Steps:
    """Return the steps: regression mean of matrices that have Grams (artefacts `kind`), weighted mean of the rest."""
    if not any(weight):
        raise ValueError(f"weight: all are 0 ({list(weight)}); at least one expert has to count")
    shares = [w / math.fsum(weight) for w in weight]
    used = [i for i, share in enumerate(shares) if share]

    def whole(tensor: Whole, known: Statistics) -> Tensor:
        import torch

        if len(used) == 1:
            return tensor.expert(used[0])
        if any(tensor.aux(kind, i) is None for i in used):
            mean = torch.zeros(tensor.shape, dtype=torch.float64, device=tensor.device)
            for i in used:
                mean.add_(tensor.expert(i), alpha=shares[i])
            return mean

        def gram(i: int) -> Tensor:
            found = tensor.aux(kind, i)
            assert found is not None
            if not math.isfinite(float(found.sum(dtype=torch.float64))) or bool((found.diagonal() < 0).any()):
                raise WorkError(
                    f"tensor {tensor.tensor!r}: the Gram matrix of {tensor.expert_names[i]!r} is not finite or has a "
                    "diagonal below 0, so it is no X^T X: gather it again"
                )
            return found

        merged, ridge = regression_mean(gram, tensor.expert, shares, ratio)
        if ridge is not None:
            known["facts"] = {"ridge": ridge}
            warnings.warn(
                "regression mean: the sum of Gram matrices is singular for some tensors (fewer tokens than inputs, or "
                "inputs that are always 0); a small ridge towards the weighted mean was added there, see `ridge` in "
                "the facts of the tensors",
                stacklevel=2,
            )
        return merged

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        kernels().weighted_sum(chunk.experts, chunk.numbers(shares), chunk.out)
        return chunk.out

    return Steps(apply, whole=whole, selects=matrices(include, exclude))
