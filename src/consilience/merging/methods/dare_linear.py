"""DARE (linear): drop entries of each task vector at random, rescale the rest, add them to the base.

    theta = base + lambda * sum_i w_i m_i (theta_i - base) / density        m_i ~ Bernoulli(density)

The expected task vector is unchanged, so this equals task arithmetic plus noise; it thins out deltas before they are
combined. Masks are a function of (seed, tensor, expert, index). rescale "inverse" is the paper's; "l1" restores each
tensor's sum of magnitudes, as mergekit does.

Use: experts with small changes (supervised fine-tuning), of which most entries can be dropped.
Avoid: large changes (rms above about 0.002, continued pre-training): what is dropped is missed.

Source: Yu et al. 2023, Language models are super Mario, arXiv 2311.03099; code yule-BUAA/MergeLM.
"""

from __future__ import annotations

from typing import Literal

from consilience.merging.method import PerExpert, Share, each, method
from consilience.merging.sparsify import RandomDrop
from consilience.merging.steps import Steps
from consilience.merging.task_vectors import task_vector_steps


@method(base="required", laws=("idempotent", "zero_weight", "permutation", "scale"))
def dare_linear(
    weight: PerExpert[float] = each(1.0),
    density: PerExpert[Share] = each(0.5),
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: Literal["inverse", "l1", "none"] = "inverse",
) -> Steps:
    """Drop at random, rescale, add.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a = {"w": np.zeros(4, np.float32)}, {"w": np.ones(4, np.float32)}
    >>> set(merge_state_dicts("dare_linear", base, {"a": a}, density=0.5, seed=1)["w"].tolist()) <= {0.0, 2.0}
    True

    weight: coefficient of each task vector. density: probability of keeping an entry, 0 to 1. lambda: coefficient of
    the sum. normalize: divide by the sum of the weights. rescale: how the kept entries are scaled up.
    """
    drop = (RandomDrop(density, rescale),)
    return task_vector_steps(weight, lambda_, sparsifiers=drop, normalize=normalize)
