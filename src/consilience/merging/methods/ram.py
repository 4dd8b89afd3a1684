"""RAM: changes that one expert made alone are taken whole, those that several made are averaged.

    theta = base + (1 / |S|) sum_{i in S} tau_i,   S = {i: |tau_i| > epsilon}, entry by entry

tau_i = theta_i - base. Averaging over all experts would shrink what only one of them learned to 1/N; here it stays.

Use: experts whose changes are sparse, as those of reinforcement learning are.
Avoid: experts that change every entry (ordinary fine-tuning, or an epsilon below the rounding of the weights), for
which it is the plain average.

Source: Behavior Knowledge Merge in Reinforced Agentic Models, arXiv 2601.13572; mergekit's ram.
"""

from __future__ import annotations

from typing import Annotated, Any

from numpy.typing import NDArray

from consilience.merging.kernels import change_kernels, kernels
from consilience.merging.method import Between, method
from consilience.merging.steps import Chunk, Statistics, Steps


@method(base="required", laws=("idempotent", "permutation"))
def ram(epsilon: Annotated[float, Between(0.0)] = 1e-5) -> Steps:
    """Take changes of one expert whole, average shared ones.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a, b = {"w": np.zeros(3)}, {"w": np.array([2.0, 1, 0])}, {"w": np.array([0, 3.0, 0])}
    >>> merge_state_dicts("ram", base, {"a": a, "b": b})["w"].tolist()
    [2.0, 2.0, 0.0]

    epsilon: magnitude above which an entry counts as changed, in the units of the weights.
    """

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        whole = chunk.numbers([1.0] * len(chunk.deltas))
        change_kernels().changed_mean(chunk.deltas, epsilon, whole, chunk.out)
        kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    return Steps(apply, deltas=True)
