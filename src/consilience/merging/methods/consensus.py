"""Consensus Merging: drop the weights that matter to too few tasks from the multi-task vector, add the rest.

    tau_MTL = sum_t tau_t, tau_t = theta_t - base    (merge "ties": the `density` share of each task vector that is
                                                      largest over the whole model, agreeing entries summed)
    mask_t  = |tau_t| > tall_mask_lambda_t * |tau_MTL - tau_t|
    theta   = base + alpha * tau_MTL * [sum_t mask_t >= k]

k 0 keeps all weights (the plain merge); 1 drops the catastrophic ones, which no task uses; 2 the selfish ones too,
which one task uses; more tasks than there are give the base (a warning says so). How many weights of a tensor are
catastrophic, selfish and general is in the manifest; weights that no expert changed are not counted.

Choose alpha on validation data (the authors: 0.1, 0.2, ..., 1.0) and give the method you compare with the same choice;
0.3 is usual for sums of task vectors without such data. lambda_t as in tall_mask: from 0.2, ..., 0.6 by validation,
0.4 being our choice without. Fails where tasks share little: then all their weights are selfish.

Use: many experts whose sum carries weights that matter to one task only; the same search over alpha as task
arithmetic.
Avoid: two experts, where k = 2 keeps only what both use.

Source: Wang et al. 2024, Localizing Task Information for Improved Model Merging and Compression, arXiv 2405.07813;
code nik-dim/tall_masks (k: prun_thre_k, alpha: scaling coefficient there).
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.localisation import Localisation, MultiTask
from consilience.merging.method import Between, PerExpert, Share, each, method
from consilience.merging.steps import Chunk, Statistics, Steps

_KINDS = ("catastrophic", "selfish", "general")


@method(base="required", laws=("idempotent", "permutation", "scale"))
def consensus(
    k: Annotated[int, Between(0)] = 2,
    alpha: float = 0.3,
    merge: MultiTask = "task_arithmetic",
    density: Share = 0.2,
    tall_mask_lambda: PerExpert[float] = each(0.4),
) -> Steps:
    """Count masks, drop, add.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, facts = {"w": np.zeros(3, np.float32)}, {}
    >>> a, b = {"w": np.float32([3, 0, 1])}, {"w": np.float32([2, 2, 8])}
    >>> merge_state_dicts("consensus", base, {"a": a, "b": b}, alpha=0.5, facts=facts)["w"].tolist()
    [2.5, 0.0, 0.0]
    >>> facts["w"]
    {'catastrophic': 0, 'selfish': 2, 'general': 1}

    k: how many tasks must use a weight. alpha: coefficient of the multi-task vector. merge: how that is made. density:
    share of each task vector that "ties" keeps, 0 to 1. tall_mask_lambda: threshold of each expert, above 0.
    """
    localisation = Localisation(merge, density, tall_mask_lambda)
    experts = len(tall_mask_lambda)

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        if chunk.start == 0:
            known["facts"] = dict.fromkeys(_KINDS, 0)
            if k > experts:
                warnings.warn(
                    f"consensus: k {k} is more than the {experts} expert(s) there are, so the result is the base",
                    stacklevel=2,
                )
        total = localisation.vector(chunk, known)
        used = np.zeros(total.size, np.int32)
        for expert in range(experts):
            used += localisation.mask(chunk, total, expert)
        catastrophic, selfish = int((used == 0).sum()) - _unchanged(chunk.deltas), int((used == 1).sum())
        for kind, count in zip(_KINDS, (catastrophic, selfish, int((used > 1).sum())), strict=True):
            known["facts"][kind] += count
        kernels().apply_keep(total, used >= k, 1.0)
        kernels().add_base(total, chunk.base, alpha)
        return total

    return Steps(apply, localisation.surveys, localisation.scope, shared=localisation.shared, deltas=True)


def _unchanged(deltas: NDArray[Any]) -> int:
    """Return how many weights no expert changed; no mask has them."""
    return int(np.count_nonzero(~deltas.any(axis=0)))
