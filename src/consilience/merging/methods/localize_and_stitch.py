"""Localize-and-Stitch without data: the largest changes of each expert, averaged where they overlap.

    mask_i = |tau_i| among the largest `sparsity` share of the whole model, tau_i = theta_i - base
    theta  = base + sum_i mask_i tau_i / n,  n = how many masks have the weight

Regions of different tasks hardly meet when they are small, so each keeps its full size. Fails where experts change
most weights by similar amounts: then little of each is kept. Entries equal to the last one of the share are all kept,
so the result does not depend on the order of weights; a weight that an expert did not change is never in its mask.

`sparsity` is the authors' word for the share that is kept. The released code averages with only one of the other masks;
this is the rule of the paper. Masks that are trained on data are not offered.

Use: experts whose ability sits in a small share of the weights, to be stitched without data.
Avoid: experts with spread-out changes; without data the share of weights is a guess.

Source: He et al. 2024, Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic, arXiv 2408.13656;
uiuctml/MergeBench.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.method import PerExpert, Share, each, method
from consilience.merging.sparsify import Magnitude
from consilience.merging.steps import Chunk, Statistics, Steps


@method(base="required", laws=("idempotent", "permutation", "scale"))
def localize_and_stitch(sparsity: PerExpert[Share] = each(0.1)) -> Steps:
    """Localize, then stitch.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros(4, np.float32)}
    >>> a, b = {"w": np.float32([4, 3, 1, 0])}, {"w": np.float32([2, -5, 0, 1])}
    >>> merge_state_dicts("localize_and_stitch", base, {"a": a, "b": b}, sparsity=0.5)["w"].tolist()
    [3.0, -1.0, 0.0, 0.0]

    sparsity: share of the entries of each expert that is kept, 0 to 1 (at least one entry when it is above 0).
    """

    def count(expert: int, size: int) -> int:
        return max(int(sparsity[expert] * size), 1 if sparsity[expert] > 0 else 0)

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        deltas = chunk.deltas
        for row, (limit,) in zip(deltas, known["magnitude"], strict=True):
            if limit is not None:
                kernels().magnitude_trim(row, limit.pattern, row.size)  # all that equal the limit stay
        kernels().weighted_sum(deltas, chunk.numbers([1.0] * len(deltas)), chunk.out)
        overlap = np.count_nonzero(deltas, axis=0)
        chunk.out /= np.maximum(overlap, 1).astype(chunk.out.dtype)
        kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    surveys = Magnitude(len(sparsity), count).surveys(())
    return Steps(apply, surveys, "global", shared=("sparsity", *sparsity), deltas=True)
