"""Multislerp: the weighted mean direction of several models, with their weighted mean norm, tensor by tensor.

    u_i = x_i / |x_i|,   m = sum_i w_i u_i / |sum_i w_i u_i|,   theta = m * sum_i w_i |x_i|

x_i are the flattened experts, or with a base their task vectors (the base is then added back). The published code
takes one step more, in the tangent space at m, which is zero by construction: the weighted mean of the projections
on the tangent space of the mean vanishes.

Use it instead of averaging when the average loses norm. It fails where the weighted directions cancel (|sum w u| below
`eps` times sum |w|, 1e-7 at least): two inputs are then mixed linearly, more are an error naming the tensor. Zero
tensors have no direction and count with norm 0; no absolute threshold is used.

Use: several models whose norms should not shrink by averaging.
Avoid: opposed models, whose mean direction vanishes.

Source: Goddard, mergekit's multislerp (blog post, no paper).
"""

from __future__ import annotations

import math
from typing import Annotated

from consilience.merging.gram import RESOLUTION, Cancelled, Gram, combination_steps, length, norms
from consilience.merging.method import Between, PerExpert, each, method
from consilience.merging.steps import Steps


@method(base="optional", laws=("idempotent", "permutation", "scale"), min_experts=2)
def multislerp(
    weight: PerExpert[float] = each(1.0),
    normalize_weights: bool = True,
    eps: Annotated[float, Between(0.0, 1.0)] = 1e-8,
) -> Steps:
    """Mix directions and norms apart.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> a, b = {"w": np.array([2.0, 0])}, {"w": np.array([0, 4.0])}
    >>> merge_state_dicts("multislerp", None, {"a": a, "b": b})["w"].round(4).tolist()
    [2.1213, 2.1213]

    weight: share of each expert. normalize_weights: divide them by their sum, which must then not be 0. eps: length
    of the weighted mean direction, relative to the sum of the weights, below which the inputs cancel.
    """
    total, largest = math.fsum(weight), math.fsum(abs(w) for w in weight)
    if normalize_weights and abs(total) <= 1e-12 * largest:
        raise ValueError(
            f"weight: the weights {list(weight)} sum to 0 and cannot be normalised; change them or set "
            "normalize_weights: false"
        )
    shares = [w / total for w in weight] if normalize_weights else list(weight)
    shortest = max(eps, RESOLUTION) * math.fsum(abs(w) for w in shares)

    def solve(gram: Gram) -> list[float]:
        lengths = norms(gram)
        directions = [w / n if n else 0.0 for w, n in zip(shares, lengths, strict=True)]
        mean = length(gram, directions)
        if mean <= shortest:
            if len(shares) == 2 or not any(lengths):
                return shares
            raise Cancelled(
                f"multislerp: the weighted directions of the {len(shares)} inputs cancel (length {mean:.1e}), so there "
                "is no mean direction; change the weights or copy this tensor"
            )
        norm = math.fsum(w * n for w, n in zip(shares, lengths, strict=True))
        return [d * norm / mean for d in directions]

    return combination_steps(solve, idempotent=normalize_weights or abs(total - 1.0) < 1e-12)
