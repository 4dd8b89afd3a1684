"""The block shared by the task-vector methods: sparsify, weigh, vote, normalise, scale, add to the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.merging.coefficients import Coefficients
from consilience.merging.kernels import kernels
from consilience.merging.sparsify import Sparsifier, apply_all
from consilience.merging.steps import Chunk, Statistics, Steps, Survey

__all__ = ["Elected", "MergeFunction", "task_vector_steps"]

MergeFunction = Literal["sum", "mean", "max"]
_MODES = {"sum": 0, "mean": 1, "max": 2}


def task_vector_steps(
    weight: Sequence[float],
    scale: float,
    *,
    sparsifiers: Sequence[Sparsifier] = (),
    merge_function: MergeFunction | None = None,
    normalize: bool = False,
    scope: Literal["tensor", "global"] = "tensor",
    shared: tuple[Any, ...] = (),
) -> Steps:
    """Return the steps of base + scale * combination of (sparsified, weighted) task vectors.

    `merge_function` None adds all deltas (divided by the sum of the weights where `normalize`); otherwise a sign is
    elected at each position and only the deltas that agree with it are combined: their weighted "sum", "mean"
    (divided by the sum of the agreeing weights) or the one of largest magnitude ("max"). A vote of exactly zero
    elects plus, in global scope the sign that most positions elect (Yadav et al. 2023, arXiv 2306.01708).
    """
    chain = tuple(sparsifiers)
    surveys = [s for place, sparsifier in enumerate(chain) for s in sparsifier.surveys(chain[:place])]
    majority = merge_function is not None and scope == "global"
    if majority:
        surveys.append(_MajoritySurvey(tuple(weight), chain))
    total = math.fsum(weight)
    largest = max(abs(w) for w in weight)
    if normalize and largest and abs(total) < 1e-12 * largest:
        raise ValueError(
            f"weight: the weights {list(weight)} sum to 0 and cannot be normalised; change them or set normalize: false"
        )
    divisor = total if normalize and total else 1.0

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        apply_all(chain, chunk, known)
        deltas, weights = chunk.deltas, chunk.numbers(weight)
        if merge_function is None:
            kernels().weighted_sum(deltas, weights, chunk.out)
        else:
            kernels().consensus(deltas, weights, _MODES[merge_function], known.get("zero_sign", 1), chunk.out)
        kernels().add_base(chunk.out, chunk.base, scale / divisor)
        return chunk.out

    whole_rows = any(sparsifier.whole_rows for sparsifier in chain)
    steps = Steps(apply, tuple(surveys), scope, whole_rows=whole_rows, shared=shared, deltas=True)

    def linear(coefficients: Coefficients) -> Steps:
        def combine(chunk: Chunk, known: Statistics) -> NDArray[Any]:
            apply_all(chain, chunk, known)
            return _combined(chunk, coefficients)

        return replace(steps, apply=combine)

    return steps if merge_function is not None else replace(steps, linear=linear)


def _combined(chunk: Chunk, coefficients: Coefficients) -> NDArray[Any]:
    """Return the base plus the task vectors, every element times its coefficient; experts are added in order."""
    deltas, plain = chunk.deltas, coefficients.plain
    if plain is not None:
        kernels().weighted_sum(deltas, chunk.numbers(plain), chunk.out)
    else:
        size = math.prod(chunk.shape)
        chunk.out[:] = 0
        for expert, row in enumerate(deltas):
            row *= coefficients.of(expert, chunk.start, chunk.stop, chunk.tensor, size, row.dtype)
            chunk.out += row
    kernels().add_base(chunk.out, chunk.base, 1.0)
    return chunk.out


class Elected:
    """A sparsifier that drops the entries whose sign is not the elected one: that of the sum of all experts' entries.

    Where the sum is zero, the sign that most positions elect counts.
    """

    whole_rows = False

    def __init__(self, experts: int) -> None:
        self.votes = (1.0,) * experts

    def surveys(self, before: Sequence[Sparsifier]) -> tuple[Survey, ...]:
        """One pass, for the sign that most positions elect."""
        return (_MajoritySurvey(self.votes, tuple(before)),)

    def apply(self, chunk: Chunk, known: Statistics) -> None:
        """Zero what disagrees."""
        deltas = chunk.deltas
        kernels().weighted_sum(deltas, chunk.numbers(self.votes), chunk.out)
        positive = (chunk.out > 0) | ((chunk.out == 0) & (known["zero_sign"] > 0))
        for row in deltas:
            np.copyto(row, 0, where=np.where(positive, row < 0, row > 0))


class _MajoritySurvey:
    """Which sign most positions elect, for the votes that end in a draw."""

    def __init__(self, weight: tuple[float, ...], chain: tuple[Sparsifier, ...]) -> None:
        self.weight = weight
        self.chain = chain

    def start(self) -> list[int]:
        return [0, 0]

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        apply_all(self.chain, chunk, known)
        above, below = kernels().sign_counts(chunk.deltas, chunk.numbers(self.weight))
        state[0] += above
        state[1] += below

    def close(self, state: Any) -> list[int]:
        return list(state)

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        above, below = (sum(state[i] for state in states) for i in (0, 1))
        for statistics in known:
            statistics["zero_sign"] = 1 if above >= below else -1
