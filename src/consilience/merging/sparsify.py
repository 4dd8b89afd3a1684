"""Sparsifiers: which entries of a task vector take part. Shared by every method that drops entries.

A sparsifier may need surveys; afterwards it zeroes what it drops and rescales the rest, in place. Several are
chained in order, each seeing what the ones before it left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from math import fsum
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import keep_threshold
from consilience.merging.kernels import kernels
from consilience.merging.selection import Selection, Series
from consilience.merging.steps import Chunk, Statistics, Survey, blocks_of

__all__ = ["Magnitude", "RandomDrop", "Sparsifier", "apply_all", "deltas_after"]


class Sparsifier(Protocol):
    """Drops entries of the task vectors of a chunk, in place. `whole_rows`: chunks must not cut a row."""

    whole_rows: bool

    def surveys(self, before: Sequence[Sparsifier]) -> tuple[Survey, ...]:
        """Return the passes it needs; `before` are the sparsifiers that come first."""

    def apply(self, chunk: Chunk, known: Statistics) -> None:
        """Zero and rescale `chunk.deltas`."""


def apply_all(sparsifiers: Sequence[Sparsifier], chunk: Chunk, known: Statistics) -> None:
    """Apply a chain of sparsifiers to the task vectors of a chunk, in place."""
    for sparsifier in sparsifiers:
        sparsifier.apply(chunk, known)


class RandomDrop:
    """Keep each entry with probability `density`, then rescale what is left (DARE).

    rescale "inverse": divide by the density, so that the expected value is preserved (the paper's rule). "l1":
    restore the sum of magnitudes of the tensor (mergekit's rule; needs a pass). "none": leave as is.
    """

    whole_rows = False

    def __init__(self, density: Sequence[float], rescale: Literal["inverse", "l1", "none"]) -> None:
        if rescale == "inverse" and any(d <= 0 for d in density):
            raise ValueError("density 0 drops everything and cannot be rescaled by its inverse; use a density above 0")
        self.density = tuple(density)
        self.rescale = rescale
        self.thresholds = tuple(keep_threshold(d) for d in density)

    def surveys(self, before: Sequence[Sparsifier]) -> tuple[Survey, ...]:
        """One pass where magnitudes are to be restored, else none."""
        return (_NormSurvey(self),) if self.rescale == "l1" and min(self.density) < 1 else ()

    def apply(self, chunk: Chunk, known: Statistics) -> None:
        """Zero and rescale the task vectors of a chunk."""
        deltas = chunk.deltas
        for expert, density in enumerate(self.density):
            if density >= 1:
                continue
            if self.rescale == "inverse":
                scale = 1.0 / density
            else:
                scale = known["l1_scale"][expert] if self.rescale == "l1" else 1.0
            if chunk.masks is not None:
                kernels().apply_keep(deltas[expert], np.asarray(chunk.masks[expert], np.bool_), scale)
            else:
                kernels().random_drop(deltas[expert], chunk.keys[expert], chunk.start, self.thresholds[expert], scale)


class _NormSurvey:
    """Sums of magnitudes before and after a random drop, for the rescaling that restores them."""

    def __init__(self, drop: RandomDrop) -> None:
        self.drop = drop

    def start(self) -> list[tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]]:
        return [([], []) for _ in self.drop.density]

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        deltas = chunk.deltas
        for expert, density in enumerate(self.drop.density):
            if density >= 1:
                continue
            whole, kept = np.empty((2, blocks_of(deltas.shape[1])))
            if chunk.masks is None:
                threshold = self.drop.thresholds[expert]
                kernels().random_block_norms(deltas[expert], chunk.keys[expert], chunk.start, threshold, whole, kept)
            else:
                kernels().block_norms(deltas[expert], whole)
                kernels().block_norms(np.where(chunk.masks[expert], deltas[expert], 0), kept)
            state[expert][0].append(whole)
            state[expert][1].append(kept)

    def close(self, state: Any) -> list[tuple[float, float]]:
        return [(_exact_sum(whole), _exact_sum(kept)) for whole, kept in state]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        for state, statistics in zip(states, known, strict=True):
            statistics["l1_scale"] = [whole / kept if kept > 0 else 1.0 for whole, kept in state]


def _exact_sum(parts: Sequence[NDArray[np.float64]]) -> float:
    return fsum(chain.from_iterable(part.tolist() for part in parts))


class Magnitude:
    """Keep the entries of largest magnitude (TIES' trimming); at the threshold the lowest index comes first.

    Magnitudes are compared as float32. `count(expert, size)` says how many of `size` entries an expert keeps. With
    global scope the entries of all tensors compete, ordered by the tensors' names; otherwise it is `local`.
    """

    whole_rows = False

    def __init__(self, experts: int, count: Callable[[int, int], int], *, local: bool = False) -> None:
        self.experts = experts
        self.count = count
        self.local = local

    def surveys(self, before: Sequence[Sparsifier]) -> tuple[Survey, ...]:
        """Two passes: the upper and the lower half of the bits of the threshold."""
        return Selection(
            "magnitude",
            self.experts,
            deltas_after(before),
            lambda expert, size, filled: (self.count(expert, size),),
            local=self.local,
        ).surveys()

    def apply(self, chunk: Chunk, known: Statistics) -> None:
        """Zero what is below the threshold of each expert."""
        deltas = chunk.deltas
        limits = known["magnitude"]
        left = chunk.carry.setdefault("magnitude", [limit.within if limit else 0 for (limit,) in limits])
        for expert, (limit,) in enumerate(limits):
            if limit is not None:
                left[expert] -= kernels().magnitude_trim(deltas[expert], limit.pattern, left[expert])


def deltas_after(before: Sequence[Sparsifier]) -> Series:
    """Return what gives the task vectors of a chunk as earlier sparsifiers leave them."""

    def values(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        apply_all(before, chunk, known)
        return chunk.deltas

    return values
