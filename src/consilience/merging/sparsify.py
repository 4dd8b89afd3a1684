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
from consilience.merging.steps import Chunk, Statistics, Survey, blocks_of

__all__ = ["Magnitude", "RandomDrop", "Sparsifier", "apply_all"]


class Sparsifier(Protocol):
    """Drops entries of the task vectors of a chunk, in place."""

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

    def start(self) -> list[tuple[list[list[float]], list[list[float]]]]:
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
            for sums, parts in zip((whole, kept), state[expert], strict=True):
                parts.append(sums.tolist())

    def close(self, state: Any) -> list[tuple[float, float]]:
        return [(fsum(chain.from_iterable(whole)), fsum(chain.from_iterable(kept))) for whole, kept in state]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        for state, statistics in zip(states, known, strict=True):
            statistics["l1_scale"] = [whole / kept if kept > 0 else 1.0 for whole, kept in state]


class Magnitude:
    """Keep the entries of largest magnitude (TIES' trimming); at the threshold the lowest index comes first.

    Magnitudes are compared as float32. `count(expert, size)` says how many of `size` entries an expert keeps. With
    global scope the entries of all tensors compete, ordered by the tensors' names.
    """

    def __init__(self, experts: int, count: Callable[[int, int], int]) -> None:
        self.experts = experts
        self.count = count

    def surveys(self, before: Sequence[Sparsifier]) -> tuple[Survey, ...]:
        """Two passes: the upper and the lower half of the bits of the threshold."""
        return (_HistogramSurvey(self, tuple(before), lower=False), _HistogramSurvey(self, tuple(before), lower=True))

    def apply(self, chunk: Chunk, known: Statistics) -> None:
        """Zero what is below the threshold of each expert."""
        deltas = chunk.deltas
        left = chunk.carry.setdefault("magnitude_quota", list(known["magnitude_quota"]))
        for expert, threshold in enumerate(known["magnitude_threshold"]):
            if threshold is not None:
                left[expert] -= kernels().magnitude_trim(deltas[expert], threshold, left[expert])


class _HistogramSurvey:
    """Counts magnitudes by half of their bits, and so finds the threshold of each expert exactly, without sorting."""

    def __init__(self, magnitude: Magnitude, before: tuple[Sparsifier, ...], *, lower: bool) -> None:
        self.magnitude = magnitude
        self.before = before
        self.lower = lower

    def start(self) -> NDArray[np.int64]:
        return np.zeros((self.magnitude.experts, 65536), np.int64)

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        apply_all(self.before, chunk, known)
        deltas = chunk.deltas
        for expert in range(self.magnitude.experts):
            prefix = known["magnitude_prefix"][expert] if self.lower else -1
            if prefix is not None:
                kernels().magnitude_histogram(deltas[expert], prefix, state[expert])

    def close(self, state: Any) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        filled = [np.flatnonzero(counts) for counts in state]
        return [(bins, counts[bins]) for bins, counts in zip(filled, state, strict=True)]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        total = self.start()
        for state in states:
            for expert, (bins, counts) in enumerate(state):
                total[expert, bins] += counts
        if self.lower:
            self._finish_lower(total, states, known)
            return
        prefixes: list[int | None] = []
        ranks = []
        for expert in range(self.magnitude.experts):
            wanted = self.magnitude.count(expert, sum(sizes))
            place, rank = _bin_of_rank(total[expert], wanted) if 0 < wanted < sum(sizes) else (None, wanted)
            prefixes.append(place)
            ranks.append(rank)
        for statistics in known:
            statistics["magnitude_prefix"] = prefixes
            statistics["magnitude_rank"] = ranks

    def _finish_lower(self, total: Any, states: Sequence[Any], known: Sequence[Statistics]) -> None:
        for statistics in known:
            statistics["magnitude_threshold"] = [None] * self.magnitude.experts
            statistics["magnitude_quota"] = [0] * self.magnitude.experts
        for expert in range(self.magnitude.experts):
            prefix, rank = known[0]["magnitude_prefix"][expert], known[0]["magnitude_rank"][expert]
            if prefix is None and rank > 0:
                continue  # everything is kept
            place, quota = _bin_of_rank(total[expert], rank) if prefix is not None else (0xFFFF, 0)
            threshold = (prefix << 16 | place) if prefix is not None else 0xFFFFFFFF
            for statistics, state in zip(known, states, strict=True):
                bins, counts = state[expert]
                here = min(quota, int(counts[bins == place].sum()))
                statistics["magnitude_threshold"][expert] = threshold
                statistics["magnitude_quota"][expert] = here
                quota -= here


def _bin_of_rank(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Return the bin that holds the `rank`-th largest entry (from 1), and its rank within that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - above
