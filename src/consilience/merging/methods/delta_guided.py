"""Delta-guided fusion: experts weigh as much as they moved away from the base, entry by entry or tensor by tensor.

    theta = base + sum_i w_i tau_i,   w_i = |tau_i| / sum_j |tau_j|

tau_i = theta_i - base; with granularity "tensor" the magnitudes are norms of the tensor. With `inverse` the weights
are proportional to 1/|tau_i| instead. Where no expert moved, the base stays.

A reconstruction: the paper says that weights follow each parameter's deviation from its pre-trained value, its formula
was not found, and the published repository has no code for it. With `inverse` an expert that did not move keeps the
base as it is, in that entry or tensor.

Use: checkpoints of one task, or of runs that differ in their data.
Avoid: runs of unequal length or learning rate; the one that moved farthest decides nearly every entry.

Source: CoDiEmb, 2025, section 2.4 (abstract and summary only).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from numpy.typing import NDArray

from consilience.merging.gram import Gram, combination_steps, norms
from consilience.merging.kernels import change_kernels, kernels
from consilience.merging.method import method
from consilience.merging.steps import Chunk, Statistics, Steps


@method(base="required", laws=("idempotent", "permutation", "scale"))
def delta_guided(granularity: Literal["element", "tensor"] = "element", inverse: bool = False) -> Steps:
    """Weigh experts by how far they moved.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a, b = {"w": np.zeros(2)}, {"w": np.array([3.0, 0])}, {"w": np.array([1.0, 2])}
    >>> merge_state_dicts("delta_guided", base, {"a": a, "b": b})["w"].tolist()
    [2.5, 2.0]

    granularity: one weight per entry and expert, or one per tensor and expert. inverse: weights go with one over the
    deviation.
    """
    if granularity == "tensor":
        return combination_steps(lambda gram: _shares(gram, inverse))

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        change_kernels().deviation_mean(chunk.deltas, inverse, chunk.out)
        kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    return Steps(apply, deltas=True)


def _shares(gram: Gram, inverse: bool) -> Sequence[float]:
    """Return the weights of whole tensors from the norms of their changes."""
    lengths = norms(gram)
    if inverse:
        still = [float(length == 0) for length in lengths]
        lengths = still if any(still) else [min(lengths) / length for length in lengths]
    total = math.fsum(lengths)
    return [length / total for length in lengths] if total else lengths
