"""Slerp: spherical interpolation between the base and one expert, tensor by tensor.

    theta = [sin((1 - t) a) base + sin(t a) expert] / sin(a),   a the angle between the two flattened tensors

Norms are interpolated too. Where the cosine exceeds 0.9995 in magnitude the formula is linear interpolation. Use it
for two models only, when plain averaging loses norm; it has no meaning for three.

Use: two models, the oldest recipe for chat models.
Avoid: more than two, or models far apart.

Source: Shoemake 1985; tensor-wise use and the threshold as in mergekit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.method import Share, method
from consilience.merging.steps import Chunk, Statistics, Steps, blocks_of

_PARALLEL = 0.9995
_SMALL = 1e-8


class _AngleSurvey:
    """The two norms and the dot product, in float64 over fixed blocks."""

    def start(self) -> list[NDArray[np.float64]]:
        return []

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        sums = np.empty((3, blocks_of(chunk.stop - chunk.start)))
        pairs = ((chunk.base, chunk.base), (chunk.experts[0], chunk.experts[0]), (chunk.base, chunk.experts[0]))
        for row, (a, b) in zip(sums, pairs, strict=True):
            kernels().block_dots(a, b, row)
        state.append(sums)

    def close(self, state: Any) -> list[float]:
        return [math.fsum(float(x) for part in state for x in part[i]) for i in range(3)]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        for squares, statistics in zip(states, known, strict=True):
            norms = [math.sqrt(s) if math.sqrt(s) > _SMALL else 1.0 for s in squares[:2]]
            statistics["cosine"] = squares[2] / (norms[0] * norms[1])


@method(base="required", laws=("idempotent", "zero_weight", "scale"), max_experts=1)
def slerp(t: Share) -> Steps:
    """Interpolate on the sphere from the base (t = 0) to the expert (t = 1).

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> merged = merge_state_dicts("slerp", {"w": np.array([1.0, 0])}, {"a": {"w": np.array([0, 1.0])}}, t=0.5)
    >>> merged["w"].round(4).tolist()
    [0.7071, 0.7071]

    t: place between the two, from 0 to 1.
    """

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        assert chunk.base is not None
        if t in (0.0, 1.0):  # exactly one of the two, with its signs of zero
            chunk.out[:] = chunk.experts[0] if t else chunk.base
            return chunk.out
        cosine = min(max(known["cosine"], -1.0), 1.0)
        if abs(cosine) > _PARALLEL:
            first, second = 1.0 - t, t
        else:
            angle = math.acos(cosine)
            first, second = math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
        both = np.stack((chunk.base, chunk.experts[0]))
        kernels().weighted_sum(both, chunk.numbers((first, second)), chunk.out)
        return chunk.out

    return Steps(apply, (_AngleSurvey(),))
