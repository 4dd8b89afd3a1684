"""NuSLERP: spherical interpolation of two experts, or of their task vectors where there is a base.

    theta = [sin((1 - t) a) x_1 + sin(t a) x_2] / sin(a)   (+ base),   t = w_2 / (w_1 + w_2)

a is the angle between the two; norms are interpolated too. The angle is taken per flattened tensor, or with
nuslerp_flatten false per vector: along the last dimension, or along the first where nuslerp_row_wise is true (as the
published code does; its documentation names the two the other way round). A 1-D tensor is one vector.

Only where sin(a) < 1e-8 the formula is linear, so nearly opposite vectors are extrapolated far; slerp falls back
earlier. A zero vector counts as orthogonal. t is 0.5 where |w_1 + w_2| < 1e-6.

Use: two experts, with or without a base, when the norm should be kept.
Avoid: more than two experts.

Source: Shoemake 1985; mergekit's nuslerp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.gram import combination_steps, vectors
from consilience.merging.kernels import kernels, row_kernels
from consilience.merging.method import PerExpert, method
from consilience.merging.steps import Chunk, Statistics, Steps

_PARALLEL = 1e-8


@method(base="optional", laws=("idempotent", "permutation", "scale"), min_experts=2, max_experts=2)
def nuslerp(weight: PerExpert[float], nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False) -> Steps:
    """Interpolate on the sphere between two experts.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> a, b = {"w": np.array([1.0, 0])}, {"w": np.array([0, 1.0])}
    >>> merge_state_dicts("nuslerp", None, {"a": a, "b": b}, weight={"a": 1, "b": 1})["w"].round(4).tolist()
    [0.7071, 0.7071]

    weight: share of each expert; only their ratio counts. nuslerp_flatten: one angle per tensor. nuslerp_row_wise:
    without flattening, one angle per vector along the first dimension instead of the last.
    """
    total = weight[0] + weight[1]
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    if nuslerp_flatten:
        return combination_steps(lambda gram: _shares(t, *gram[[0, 0, 1], [0, 1, 1]].tolist()))
    if nuslerp_row_wise:
        return Steps(_per_vector(_column_shares), (_ColumnSurvey(t),), deltas=True)
    return Steps(_per_vector(lambda chunk, known: _row_shares(chunk, t)), whole_rows=True, deltas=True)


def _shares(t: float, first: float, both: float, second: float) -> tuple[float, float]:
    """Return the coefficients of two vectors of given squared norms and inner product."""
    norms = math.sqrt(first) * math.sqrt(second)
    cosine = min(max(both / norms, -1.0), 1.0) if norms > 0 else 0.0
    angle, sine = math.acos(cosine), math.sqrt((1.0 - cosine) * (1.0 + cosine))
    if not sine >= _PARALLEL:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine


def _per_vector(shares: Callable[[Chunk, Statistics], NDArray[Any]]) -> Any:
    """Return the apply of coefficients that differ between elements: shape (2, elements)."""

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        inputs = vectors(chunk)
        inputs *= shares(chunk, known)
        np.add(inputs[0], inputs[1], out=chunk.out)
        if chunk.base is not None:
            kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    return apply


def _row_shares(chunk: Chunk, t: float) -> NDArray[Any]:
    inputs, row = vectors(chunk), chunk.shape[-1] if chunk.shape else 1
    sums = np.empty((3, inputs.shape[1] // row))
    for line, (i, j) in zip(sums, ((0, 0), (0, 1), (1, 1)), strict=True):
        row_kernels().row_dots(inputs[i], inputs[j], row, line)
    return np.repeat(_table(t, sums).astype(inputs.dtype), row, axis=1)


def _column_shares(chunk: Chunk, known: Statistics) -> NDArray[Any]:
    table = known["column_shares"]
    first, size = chunk.start % table.shape[1], chunk.stop - chunk.start
    if first + size > table.shape[1]:
        table = np.tile(table, -(-(first + size) // table.shape[1]))
    shares: NDArray[Any] = table[:, first : first + size].astype(chunk.experts.dtype)
    return shares


def _table(t: float, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the coefficients of each vector, from its three inner products."""
    return np.array(
        [
            _shares(t, *three) if all(map(math.isfinite, three)) else (math.nan, math.nan)
            for three in zip(*sums.tolist(), strict=True)
        ]
    ).T


class _ColumnSurvey:
    """The inner products of each column (a vector along the first dimension), rows added in order."""

    def __init__(self, t: float) -> None:
        self.t = t

    def start(self) -> dict[str, NDArray[np.float64]]:
        return {}

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        inputs = vectors(chunk)
        columns = int(np.prod(chunk.shape[1:], dtype=np.int64))
        sums = state.setdefault("sums", np.zeros((3, columns)))
        for line, (i, j) in zip(sums, ((0, 0), (0, 1), (1, 1)), strict=True):
            row_kernels().column_dots(inputs[i], inputs[j], chunk.start, line)

    def close(self, state: Any) -> Any:
        return state["sums"]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        for sums, statistics in zip(states, known, strict=True):
            statistics["column_shares"] = _table(self.t, sums)
