"""WUDI: the merged task vector that interferes least with what each expert's layer responds to.

A linear layer's task vector lies in the span of the inputs it was trained on, so the task vector itself stands for
the data. Per weight matrix, with tau_i = theta_i - base, minimise over m

    sum_i ||(m - tau_i) tau_i^T||_F^2 / ||tau_i||_F^2

starting at m = sum_i tau_i, by `steps` steps of Adam; theta = base + lambda * m.

Adam moves every entry by about the rate per step, so 300 steps of 1e-5 go 3e-3 at most: task vectors much larger than
that stay near their sum, much smaller ones oscillate. `learning_rate_unit: rms` with a rate of 0.02 follows their size.
An expert that does not change a matrix is left out there. Each matrix's objective before and after is in the manifest.
Memory: about six times the matrix and a square of its inputs; without the square for adapters.

Use: several fully fine-tuned experts of one base, no data, and time for 300 steps per matrix.
Avoid: experts far from the base, which stay near their sum; adapters of language models, whose norm it lets grow.

Source: Cheng et al. 2025, Whoever Started the Interference Should End It, arXiv 2503.08099; code
nathanielyvo/WUDI-Merging (tensors that are not optimised stay as in the base; fusion_bench averages them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from numpy.typing import NDArray

from consilience.merging.matrix import Rest, matrices, rest_steps
from consilience.merging.method import Between, Regex, method
from consilience.merging.optimise import (
    NOT_LAYERS,
    TOLERANCE,
    Quadratic,
    RateUnit,
    root_mean_square,
    squared_norm,
)
from consilience.merging.steps import Chunk, Statistics, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.merging.whole import Whole


@method(base="required", laws=("idempotent", "permutation"))
def wudi(
    lambda_: float = 1.0,
    steps: Annotated[int, Between(0, 1_000_000)] = 300,
    learning_rate: Annotated[float, Between(0.0)] = 1e-5,
    learning_rate_unit: RateUnit = "absolute",
    include: Regex = "",
    exclude: Regex = NOT_LAYERS,
    rest: Rest = "base",
) -> Steps:
    """Start at the sum of the task vectors and remove the interference.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros((2, 2), np.float32)}
    >>> a, b = {"w": np.float32([[1, 0], [0, 0]])}, {"w": np.float32([[0.5, 0], [0, 1]])}
    >>> merged = merge_state_dicts("wudi", base, {"a": a, "b": b}, learning_rate=0.02, learning_rate_unit="rms")
    >>> merged["w"].diagonal().astype(float).round(1).tolist()
    [0.9, 1.0]

    lambda: coefficient of the merged task vector. steps: of Adam. learning_rate: per step, in `learning_rate_unit`.
    include, exclude: which matrices are optimised. rest: all other tensors stay as in the base, or get the mean.
    """

    def optimised(whole: Whole, known: Statistics) -> Tensor:
        merged, norms = _sum(whole)
        if sum(norm > 0 for norm in norms) > 1:
            objective = _objective(whole, merged, norms)
            rate = learning_rate * (root_mean_square(norms, whole.shape) if learning_rate_unit == "rms" else 1.0)
            change = objective.adam(rate, steps)
            objective.record(whole, known, change, rate)
            merged += change
            del objective, change
        return whole.base().add_(merged, alpha=lambda_)

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        return rest_steps(rest, len(chunk.experts), lambda_)(chunk, known)

    return Steps(apply, whole=optimised, selects=matrices(include, exclude), deltas=True, tolerance=TOLERANCE)


def _sum(whole: Whole) -> tuple[Tensor, list[float]]:
    """Return the sum of the task vectors and the square of the norm of each."""
    total = whole.delta(0)
    norms = [squared_norm(total)]
    for expert in range(1, whole.count):
        task_vector = whole.delta(expert)
        norms.append(squared_norm(task_vector))
        total += task_vector
    return total, norms


def _objective(whole: Whole, start: Tensor, norms: Sequence[float]) -> Quadratic:
    """Return the objective of one matrix over the experts that change it."""
    changed = [expert for expert, norm in enumerate(norms) if norm > 0]
    roots = [_root(whole, expert) for expert in changed]
    objective = Quadratic(start, sum(whole.shape[0] if root is None else root.shape[0] for root in roots))
    for expert, root in zip(changed, roots, strict=True):
        task_vector = whole.delta(expert)
        objective.add(task_vector, task_vector if root is None else root, norms[expert])
        del task_vector  # before the next one is read
    return objective


def _root(whole: Whole, expert: int) -> Tensor | None:
    """Return a matrix of few rows with the Gram matrix of an adapter's task vector; None for a full model."""
    import torch

    factors = whole.factors(expert)
    if factors is None or factors[1].shape[0] >= min(whole.shape):
        return None
    root: Tensor = torch.linalg.qr(factors[0])[1] @ factors[1]
    return root
