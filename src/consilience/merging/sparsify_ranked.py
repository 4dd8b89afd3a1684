"""Random drops whose probability follows the rank of an entry in its row (DELLA's MagPrune)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels, row_kernels
from consilience.merging.sparsify import Sparsifier
from consilience.merging.steps import Chunk, Statistics, Survey

__all__ = ["MagnitudeRankedDrop", "keep_probabilities"]


_MOST_KEPT = 1 << 24  # bytes per tensor


def keep_probabilities(density: float, epsilon: float, row: int) -> NDArray[np.float64]:
    """Return the probability of keeping an entry by its rank in a row, the smallest magnitude first.

    >>> keep_probabilities(0.5, 0.25, 3).tolist()
    [0.25, 0.5, 0.75]
    """
    if row == 1:
        return np.array([density])
    return density - epsilon + 2 * epsilon * np.arange(row) / (row - 1)


class MagnitudeRankedDrop:
    """Keep an entry with a probability that grows with its rank in its row (the last dimension).

    The smallest magnitude of a row is kept with probability density - epsilon, the largest with density + epsilon;
    of equal magnitudes the lowest index ranks highest. Density 1 keeps all, 0 drops all. rescale "inverse": divide
    each kept entry by its own probability (the paper's rule); "l1": restore the tensor's sum of magnitudes
    (mergekit's; needs a pass); "none".
    """

    whole_rows = True

    def __init__(
        self, density: Sequence[float], epsilon: Sequence[float], rescale: Literal["inverse", "l1", "none"]
    ) -> None:
        for share, around in zip(density, epsilon, strict=True):
            if 0 < share < 1 and not (share - around > 0 and share + around < 1):
                raise ValueError(
                    f"epsilon: density {share:g} with epsilon {around:g} gives probabilities from {share - around:g} "
                    f"to {share + around:g}, which must lie between 0 and 1; use an epsilon below "
                    f"{min(share, 1 - share):g}"
                )
        self.density = tuple(density)
        self.epsilon = tuple(epsilon)
        self.rescale = rescale

    def surveys(self, before: Sequence[Sparsifier]) -> tuple[Survey, ...]:
        """One pass where magnitudes are to be restored, else none."""
        return (_RankedNormSurvey(self),) if self.rescale == "l1" and min(self.density) < 1 else ()

    def apply(self, chunk: Chunk, known: Statistics) -> None:
        """Zero and rescale the task vectors of a chunk of whole rows."""
        deltas = chunk.deltas
        for expert, density in enumerate(self.density):
            if density >= 1:
                continue
            if density <= 0:
                deltas[expert] = 0
                continue
            if self.rescale == "inverse":
                ranks = np.empty(deltas.shape[1], np.uint32)
                row_kernels().rank_rows(deltas[expert], _row(chunk), ranks)
                keep = self._drawn_by_rank(chunk, expert, ranks)
                deltas[expert] *= self._table(chunk, expert, "inverse")[ranks]
                kernels().apply_keep(deltas[expert], keep, 1.0)
                continue
            kept = known.get("kept", {}).get((expert, chunk.start))
            if kept is not None:
                keep = np.unpackbits(kept, count=deltas.shape[1]).view(np.bool_)
            else:
                keep = self.drawn(chunk, expert)
            kernels().apply_keep(deltas[expert], keep, known["l1_scale"][expert] if self.rescale == "l1" else 1.0)

    def drawn(self, chunk: Chunk, expert: int) -> NDArray[np.bool_]:
        """Return which entries of an expert stay."""
        if chunk.masks is not None:
            return np.asarray(chunk.masks[expert], np.bool_)
        deltas = chunk.deltas[expert]
        keep = np.empty(deltas.size, np.bool_)
        thresholds = self._table(chunk, expert, "threshold")
        row_kernels().ranked_draw(deltas, _row(chunk), thresholds, chunk.keys[expert], chunk.start, keep)
        return keep

    def _drawn_by_rank(self, chunk: Chunk, expert: int, ranks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        if chunk.masks is not None:
            return np.asarray(chunk.masks[expert], np.bool_)
        keep = np.empty(ranks.size, np.bool_)
        thresholds = self._table(chunk, expert, "threshold")
        row_kernels().ranked_keep(ranks, thresholds, chunk.keys[expert], chunk.start, keep)
        return keep

    def _table(self, chunk: Chunk, expert: int, kind: Literal["threshold", "inverse"]) -> NDArray[Any]:
        """Return what a rank means: the draws (of 2**32) below which an entry stays, or what it is multiplied by."""
        tables = chunk.carry.setdefault("ranked_drop", {})
        if (expert, kind) not in tables:
            probability = keep_probabilities(self.density[expert], self.epsilon[expert], _row(chunk))
            tables[expert, kind] = (
                np.rint(probability * 4294967296.0).astype(np.uint64)
                if kind == "threshold"
                else (1.0 / probability).astype(chunk.experts.dtype)
            )
        table: NDArray[Any] = tables[expert, kind]
        return table


def _row(chunk: Chunk) -> int:
    return chunk.shape[-1] if chunk.shape else 1


def _remember(kept: dict[tuple[int, int], NDArray[np.uint8]], key: tuple[int, int], keep: NDArray[np.bool_]) -> None:
    """Keep what was drawn, as bits, for the pass that applies it; where that gets too much it is drawn again."""
    if sum(bits.nbytes for bits in kept.values()) < _MOST_KEPT:
        kept[key] = np.packbits(keep)


class _RankedNormSurvey:
    """Sums of magnitudes before and after the drop, row by row."""

    def __init__(self, drop: MagnitudeRankedDrop) -> None:
        self.drop = drop

    def start(self) -> list[list[float]]:
        return [[0.0, 0.0] for _ in self.drop.density]

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        deltas, row = chunk.deltas, _row(chunk)
        sums = np.empty(deltas.shape[1] // row)
        for expert, density in enumerate(self.drop.density):
            if not 0 < density < 1:
                continue
            keep = self.drop.drawn(chunk, expert)
            _remember(known.setdefault("kept", {}), (expert, chunk.start), keep)
            for place in (0, 1):
                if place:
                    kernels().apply_keep(deltas[expert], keep, 1.0)
                row_kernels().row_norms(deltas[expert], row, sums)
                total = state[expert][place]
                for value in sums.tolist():
                    total += value
                state[expert][place] = total

    def close(self, state: Any) -> list[tuple[float, float]]:
        return [(whole, kept) for whole, kept in state]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        for state, statistics in zip(states, known, strict=True):
            statistics["l1_scale"] = [whole / kept if kept > 0 else 1.0 for whole, kept in state]
