"""Nearswap: step from the base towards one expert, by at most t in every entry.

    theta = w expert + (1 - w) base,   w = clamp(t / max(|expert - base|, 1e-6), 0, 1)

Entries that differ by up to t are the expert's, the others move by t: what the two models nearly share is swapped,
strong differences are damped. Not symmetric.

Use: a base with a touch of one other model, none of whose large differences may come through.
Avoid: without a look at the size of the differences first; t is in the units of the weights (for fine-tuned models 1e-4
to 1e-3 is a lot).

Source: alchemonaut, QuartetAnemoi-70B (model card, no paper); mergekit's nearswap.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.method import Between, method
from consilience.merging.steps import Chunk, Statistics, Steps

_LEAST = 1e-6


@method(base="required", laws=("idempotent", "zero_weight"), max_experts=1)
def nearswap(t: Annotated[float, Between(0.0)]) -> Steps:
    """Move towards the expert by at most t per entry.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a = {"w": np.zeros(3)}, {"w": np.array([0.5, 2.0, -4.0])}
    >>> merge_state_dicts("nearswap", base, {"a": a}, t=1.0)["w"].tolist()
    [0.5, 1.0, -1.0]

    t: the longest step, 0 (the base) or more, in the units of the weights.
    """

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        (deltas,), out = chunk.deltas, chunk.out
        if t >= _LEAST:
            np.clip(deltas, -t, t, out=out)
        else:
            np.multiply(deltas, t / np.maximum(np.abs(deltas), _LEAST), out=out)
        kernels().add_base(out, chunk.base, 1.0)
        return out

    return Steps(apply, deltas=True)
