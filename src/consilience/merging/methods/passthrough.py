"""Passthrough: one model as it is, optionally scaled; with slices, layers are stacked (frankenmerge).

    theta = scale * theta_1

Stacking layers of one or several models makes a deeper model; it usually needs training to be useful.

Use: stacking layers (frankenmerge), scaling or copying one model.
Avoid: combining experts: it takes one.

Source: practice of the community; the language of slices is mergekit's.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.method import PerExpert, each, method
from consilience.merging.steps import Chunk, Statistics, Steps


@method(base="none", laws=("idempotent", "scale"), max_experts=1)
def passthrough(scale: PerExpert[float] = each(1.0)) -> Steps:
    """Give the one input back, times `scale`.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> merge_state_dicts("passthrough", None, {"a": {"w": np.float32([1, 2])}}, scale=0.5)["w"].tolist()
    [0.5, 1.0]
    """

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        kernels().weighted_sum(chunk.experts, chunk.numbers(scale), chunk.out)
        return chunk.out

    return Steps(apply, idempotent=scale[0] == 1.0)
