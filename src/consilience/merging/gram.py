"""Methods whose result is a combination of the inputs: coefficients from inner products, one pass to apply them.

The inner products of a tensor's inputs (its Gram matrix) are all that norms, angles and iterations on the sphere
need, so iterations run on a few numbers, never on the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import WorkError
from consilience.merging.kernels import kernels
from consilience.merging.steps import Chunk, Statistics, Steps, blocks_of

__all__ = ["RESOLUTION", "Cancelled", "Gram", "combination_steps", "inner", "length", "norms", "vectors"]

RESOLUTION = 1e-7
"""The shortest combination of unit vectors that inner products in float64 can tell from zero."""

Gram = NDArray[np.float64]
"""Inner products of the inputs: shape (experts, experts), float64."""


class Cancelled(Exception):
    """The inputs cancel each other, so that no combination is defined; the text says how."""


def vectors(chunk: Chunk) -> NDArray[Any]:
    """Return the task vectors where there is a base, else the experts."""
    return chunk.experts if chunk.base is None else chunk.deltas


def norms(gram: Gram) -> list[float]:
    """Return the length of each input."""
    return [math.sqrt(square) for square in gram.diagonal().tolist()]


def inner(gram: Gram, coefficients: Sequence[float]) -> list[float]:
    """Return the inner product of each input with a combination of them; sums are rounded once."""
    return [math.fsum(c * g for c, g in zip(coefficients, row, strict=True)) for row in gram.tolist()]


def length(gram: Gram, coefficients: Sequence[float]) -> float:
    """Return the length of a combination of the inputs."""
    square = math.fsum(
        a * b * g
        for a, row in zip(coefficients, gram.tolist(), strict=True)
        for b, g in zip(coefficients, row, strict=True)
    )
    return math.sqrt(max(square, 0.0))


def combination_steps(
    solve: Callable[[Gram], Sequence[float]], *, around_base: bool = True, idempotent: bool = True
) -> Steps:
    """Return the steps of sum_i c_i x_i with c = solve(Gram matrix), tensor by tensor.

    With `around_base` x are task vectors where there is a base, which is added back; else x are the experts.
    """

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        if "cancelled" in known:
            raise WorkError(f"tensor {chunk.tensor!r}: {known['cancelled']}")
        inputs = vectors(chunk) if around_base else chunk.experts
        kernels().weighted_sum(inputs, chunk.numbers(known["coefficients"]), chunk.out)
        if around_base and chunk.base is not None:
            kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    return Steps(apply, (_GramSurvey(solve, around_base),), idempotent=idempotent, deltas=around_base)


class _GramSurvey:
    """Inner products in float64 over fixed blocks, added in order."""

    def __init__(self, solve: Callable[[Gram], Sequence[float]], around_base: bool) -> None:
        self.solve = solve
        self.around_base = around_base

    def start(self) -> dict[tuple[int, int], float]:
        return {}

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        inputs = vectors(chunk) if self.around_base else chunk.experts
        sums = np.empty(blocks_of(inputs.shape[1]))
        for i in range(len(inputs)):
            for j in range(i, len(inputs)):
                kernels().block_dots(inputs[i], inputs[j], sums)
                total = state.get((i, j), 0.0)
                for value in sums.tolist():
                    total += value
                state[i, j] = total

    def close(self, state: Any) -> Gram:
        size = max(j for _, j in state) + 1
        gram = np.empty((size, size))
        for (i, j), total in state.items():
            gram[i, j] = gram[j, i] = total
        return gram

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        for gram, statistics in zip(states, known, strict=True):
            if not np.isfinite(gram).all():  # the pass over the values names the input that is not finite
                statistics["coefficients"] = [math.nan] * len(gram)
                continue
            try:
                statistics["coefficients"] = list(self.solve(gram))
            except Cancelled as reason:
                statistics["cancelled"] = str(reason)
