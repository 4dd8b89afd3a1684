"""OptMerge: WUDI's objective with noise removed from the task vectors, and an optimisation that fits the experts.

Per weight matrix (m x n), with tau_i = theta_i - base and k = int(min(m, n) / T), minimise over M

    sum_i ||(M - K_i) L_i^T||_F^2 / ||tau_i||_F^2,      theta = base + lambda * M

- full (full fine-tuning): K_i = the mean of the task vectors + the rank-k part of (tau_i - mean); L_i = S_k V_k of
  tau_i; from M = sum_i tau_i by Adam, rate 1e-5.
- lora (experts that were adapters): K_i = the rank-k part of tau_i, L_i as above; from M = the mean by gradient descent
  with momentum 0.9, rate 1e-4. It keeps the norm of M from growing, which ruins language ability with plain WUDI.
- modality (LoRA factors of, say, vision-, audio- and video-language adapters of one language model, A and B each on
  its own, no base): k = int(min(m, n) / 5), L_i = tau_i; as lora with rate 5e-2.

Excluded tensors stay as in the base; others that are not 2-D (or are an lm_head) get lambda times the mean.

Adam's step does not follow the size of the task vectors: where 300 steps of 1e-5 are little beside them, the result is
their sum; `learning_rate_unit: rms` follows it. With more experts than min(m, n) (modality: a rank below 5) k is 0 and
the start is kept, with a notice. L_i comes from tau_i as in the code; the paper takes it from tau_i - mean. Each
matrix's objective before and after is in the manifest. Memory: six times the matrix in float32, and what the
eigenvectors of its smaller side take in float64 (ten times a square matrix); little for adapters.

Use: experts of one backbone with different skills (full, lora) or senses (modality), no data.
Avoid: experts far from the base; where a validation set is at hand, task arithmetic with a tuned lambda is as good.

Source: Wei et al. 2025, Unifying Multimodal LLM Capabilities and Modalities via Model Merging, arXiv 2505.19892; code
WalkerWorldPeace/MLLMerging.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Annotated, Any, Literal

from numpy.typing import NDArray

from consilience.errors import RecipeError
from consilience.merging.kernels import kernels
from consilience.merging.matrix import Rest, rest_steps
from consilience.merging.method import Between, Regex, method
from consilience.merging.optimise import (
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

Variant = Literal["full", "lora", "modality"]
_RATES: dict[Variant, float] = {"full": 1e-5, "lora": 1e-4, "modality": 5e-2}
_RELATIVE_RATE = 0.02
_MODALITY_DIVISOR = 5


@method(base="optional", laws=("idempotent", "permutation"))
def optmerge(
    variant: Variant = "lora",
    lambda_: float = 0.0,
    steps: Annotated[int, Between(0, 1_000_000)] = 300,
    learning_rate: Annotated[float, Between(0.0)] = 0.0,
    learning_rate_unit: RateUnit = "absolute",
    include: Regex = "",
    exclude: Regex = r".*(visual|vision|embed|lm_head|norm|bias)",
) -> Steps:
    """Denoise the task vectors, then merge them with least interference.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros((2, 2), np.float32)}
    >>> a, b = {"w": np.float32([[1, 0], [0, 0.1]])}, {"w": np.float32([[0.1, 0], [0, 1]])}
    >>> merge_state_dicts("optmerge", base, {"a": a, "b": b}, learning_rate=0.05)["w"].round(2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    variant: see above; full and lora need a base. lambda: coefficient of the merged task vector; 0 stands for 1 with
    lora and modality, while full must be given one (the authors search 0.1 to 1.5). learning_rate: 0 stands for the
    published one, or with unit "rms" (full only: the steps of the others follow the size of the task vectors by
    themselves) for 0.02 root mean squares of the task vectors. include, exclude: which tensors are merged (modality
    merges all).
    """
    if variant == "full" and lambda_ == 0:
        raise ValueError("lambda: variant full has no default; the authors search 0.1, 0.3, 0.5, 0.7, 1.0 and 1.5")
    scale = lambda_ or 1.0
    wanted, unwanted = re.compile(include), re.compile(exclude or r"(?!)")

    def touches(name: str) -> bool:
        return wanted.match(name) is not None and unwanted.match(name) is None

    def optimised(whole: Whole, known: Statistics) -> Tensor:
        _check_base(variant, has_base=whole.has_base)
        mean, norms = _mean(whole)
        start = mean * whole.count if variant == "full" else mean
        rank = min(whole.shape) // (_MODALITY_DIVISOR if variant == "modality" else whole.count)
        if rank == 0:
            warnings.warn(
                f"optmerge: tensor {whole.tensor!r} {list(whole.shape)} is too small: no singular vector is left to "
                f"each of {whole.count} experts, so it gets their {'sum' if variant == 'full' else 'mean'}",
                stacklevel=2,
            )
        elif any(norms):
            objective = _objective(whole, variant, start, mean, norms, rank)
            rate = learning_rate or _RATES[variant]
            if variant == "full" and learning_rate_unit == "rms":
                rate = (learning_rate or _RELATIVE_RATE) * root_mean_square(norms, whole.shape)
            minimise = objective.adam if variant == "full" else objective.descend
            change = minimise(rate, steps)
            objective.record(whole, known, change, rate)
            start = start + change
            del objective, change
        return whole.base().add_(start, alpha=scale) if whole.has_base else start * scale

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        _check_base(variant, has_base=chunk.base is not None)
        if chunk.base is None:
            count = len(chunk.experts)
            kernels().weighted_sum(chunk.experts, chunk.numbers([scale / count] * count), chunk.out)
            return chunk.out
        rest: Rest = "mean" if variant == "modality" or touches(chunk.tensor) else "base"
        return rest_steps(rest, len(chunk.experts), scale)(chunk, known)

    def selects(name: str, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and (variant == "modality" or (touches(name) and "lm_head" not in name))

    return Steps(apply, whole=optimised, selects=selects, tolerance=TOLERANCE if variant == "full" else 1e-4)


def _check_base(variant: Variant, *, has_base: bool) -> None:
    if variant != "modality" and not has_base:
        raise RecipeError(
            f"optmerge: variant {variant!r} works on task vectors and needs a base model; name one as base"
        )


def _task_vector(whole: Whole, expert: int) -> Tensor:
    return whole.delta(expert) if whole.has_base else whole.expert(expert)


def _mean(whole: Whole) -> tuple[Tensor, list[float]]:
    """Return the mean of the task vectors and the square of the norm of each."""
    total = _task_vector(whole, 0)
    norms = [squared_norm(total)]
    for expert in range(1, whole.count):
        task_vector = _task_vector(whole, expert)
        norms.append(squared_norm(task_vector))
        total += task_vector
    return total.div_(whole.count), norms


def _objective(whole: Whole, variant: Variant, start: Tensor, mean: Tensor, norms: list[float], rank: int) -> Quadratic:
    """Return the objective of one matrix over the experts that change it."""
    import torch

    from consilience.merging.singular import leading, leading_of_product

    changed = [expert for expert, norm in enumerate(norms) if norm > 0]
    objective = Quadratic(start, len(changed) * (whole.shape[0] if variant == "modality" else rank))
    for expert in changed:
        task_vector = _task_vector(whole, expert)
        factors = whole.factors(expert) if whole.has_base else None
        found = leading(task_vector, rank) if factors is None else leading_of_product(*factors, rank)
        right = found.right * found.values.to(found.right.dtype)[:, None]
        root = task_vector if variant == "modality" else right
        if variant == "full":
            found = leading(task_vector - mean, rank)
            target = torch.addmm(mean, found.left * found.values.to(mean.dtype), found.right)
        else:
            target = found.left @ right
        objective.add(target, root, norms[expert])
    return objective
