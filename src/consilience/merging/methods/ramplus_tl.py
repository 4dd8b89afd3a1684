"""RAM+, tensor by tensor: as RAM, and what an expert changed alone is strengthened where much of its work is shared.

    theta = base + (1 / |S|) sum_{i in S} s_i tau_i,   S = {i: |tau_i| > epsilon}, entry by entry
    s_i = 1 + r clamp(shared_i / alone_i, 0, alpha) where S = {i}, else 1

shared_i and alone_i count the entries of the tensor in which expert i is one of several in S, or the only one. The
strengthening makes up for what averaging takes from the shared entries. The published method counts over the whole
model; per tensor, as here and in mergekit, a tensor with hardly any entry of an expert's own reaches the limit
1 + r alpha at once.

Use: as ram, where averaging the shared entries costs too much.
Avoid: as ram; tensors without sparse changes gain nothing.

Source: Behavior Knowledge Merge in Reinforced Agentic Models, arXiv 2601.13572; mergekit's ramplus_tl.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import change_kernels, kernels
from consilience.merging.method import Between, method
from consilience.merging.steps import Chunk, Statistics, Steps


@method(base="required", laws=("idempotent", "permutation"))
def ramplus_tl(
    r: Annotated[float, Between(0.0)] = 0.1,
    alpha: Annotated[float, Between(0.0)] = 0.2,
    epsilon: Annotated[float, Between(0.0)] = 1e-5,
) -> Steps:
    """Average shared changes, strengthen those of one expert.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a, b = {"w": np.zeros(3)}, {"w": np.array([2.0, 1, 0])}, {"w": np.array([0, 3.0, 0])}
    >>> merge_state_dicts("ramplus_tl", base, {"a": a, "b": b}, r=0.5, alpha=1.0)["w"].tolist()
    [3.0, 2.0, 0.0]

    r: how much is added per unit of shared over alone. alpha: the most that ratio counts as. epsilon: magnitude above
    which an entry counts as changed, in the units of the weights.
    """

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        change_kernels().changed_mean(chunk.deltas, epsilon, chunk.numbers(known["scales"]), chunk.out)
        kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    return Steps(apply, (_OverlapSurvey(r, alpha, epsilon),), deltas=True)


class _OverlapSurvey:
    """How many changes of each expert are its own and how many are shared, and the scale that follows."""

    def __init__(self, r: float, alpha: float, epsilon: float) -> None:
        self.r = r
        self.alpha = alpha
        self.epsilon = epsilon

    def start(self) -> dict[str, NDArray[np.int64]]:
        return {}

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        counts = state.setdefault("counts", np.zeros((2, len(chunk.deltas)), np.int64))
        change_kernels().count_changes(chunk.deltas, self.epsilon, counts)

    def close(self, state: Any) -> list[list[int]]:
        counts: list[list[int]] = state["counts"].tolist()
        return counts

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        for (alone, shared), statistics in zip(states, known, strict=True):
            statistics["scales"] = [
                1.0 + self.r * min(both / own, self.alpha) if own else 1.0
                for own, both in zip(alone, shared, strict=True)
            ]
