"""Linear: the weighted average of the experts (model soup).

    theta = sum_i w_i theta_i / sum_i w_i        (without the division where normalize is false)

Use it first: it needs no base, costs one pass and rarely breaks anything. It fails where experts conflict: every
expert's gain shrinks with their number.

Use: runs of one task (seeds, checkpoints), and as the first baseline of every comparison.
Avoid: many experts of different tasks: each keeps only its share.

Source: Wortsman et al. 2022, Model soups, arXiv 2203.05482.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.method import PerExpert, each, method
from consilience.merging.steps import Chunk, Statistics, Steps


@method(base="none", laws=("idempotent", "permutation", "scale"))
def linear(weight: PerExpert[float] = each(1.0), normalize: bool = True) -> Steps:
    """Average the experts by weight.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> a, b = {"w": np.float32([1, 2])}, {"w": np.float32([3, 6])}
    >>> merge_state_dicts("linear", None, {"a": a, "b": b}, weight={"a": 1, "b": 3})["w"].tolist()
    [2.5, 5.0]

    weight: share of each expert. normalize: divide by the sum of the weights, which must then not be 0.
    """
    total = math.fsum(weight)
    if normalize and abs(total) < 1e-12 * max(1.0, *(abs(w) for w in weight)):
        raise ValueError(
            f"weight: the weights {list(weight)} sum to 0 and cannot be normalised; change them or set normalize: false"
        )
    shares = [w / total for w in weight] if normalize else list(weight)

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        kernels().weighted_sum(chunk.experts, chunk.numbers(shares), chunk.out)
        return chunk.out

    return Steps(apply, idempotent=normalize or abs(total - 1.0) < 1e-12)
