"""Keeps a band of magnitudes: outliers and small changes both go (Model Breadcrumbs)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import row_kernels
from consilience.merging.selection import NOTHING, Limit, Selection
from consilience.merging.sparsify import Sparsifier, deltas_after
from consilience.merging.steps import Chunk, Statistics, Survey

__all__ = ["Definition", "RowBand", "TensorBand", "breadcrumbs_band"]

Definition = Literal["official", "keep_first", "paper", "mergekit"]
Band = Callable[[int, int], tuple[int, int]]
"""Says of an expert and a size how many outliers go and how many of the rest stay."""


def breadcrumbs_band(definition: Definition, density: Sequence[float], gamma: Sequence[float]) -> RowBand | TensorBand:
    """Return the band that `density` (share kept) and `gamma` (share of outliers) mean under each definition.

    "official" (the authors' code): in every row, the outliers go and then the `density` share of the row that is
    largest among the rest stays; a row shorter than 1 / density vanishes. "keep_first": the same rows, but outliers
    are taken out of what is kept, so that density - gamma stays. "paper": as "keep_first", per tensor. "mergekit":
    per tensor the `density` share stays, fewer outliers going where they would not fit; density 1 keeps everything.
    Per tensor at least one entry stays where density is above 0.
    """

    def rows(expert: int, size: int) -> tuple[int, int]:
        top, keep = int(size * gamma[expert]), int(size * density[expert])
        return top, keep if definition == "official" else max(keep - top, 0)

    def tensor(expert: int, size: int) -> tuple[int, int]:
        if density[expert] >= 1 and definition == "mergekit":
            return 0, size
        least = 1 if density[expert] > 0 else 0
        top, keep = int(size * gamma[expert]), int(size * density[expert])
        if definition == "paper":
            top = min(top, size - least)
            return top, max(keep - top, least)
        keep = max(keep, least)
        return min(top, size - keep), keep

    return RowBand(rows) if definition in ("official", "keep_first") else TensorBand(len(density), tensor)


class RowBand:
    """Zero the outliers of each row (last dimension) and all but the largest of the rest; scalars stay as they are."""

    whole_rows = True

    def __init__(self, band: Band) -> None:
        self.band = band

    def surveys(self, before: Sequence[Sparsifier]) -> tuple[Survey, ...]:
        """No pass: a chunk holds whole rows."""
        return ()

    def apply(self, chunk: Chunk, known: Statistics) -> None:
        """Zero what is outside the band in a chunk of whole rows."""
        if not chunk.shape:
            return
        row = chunk.shape[-1]
        bands = [self.band(expert, row) for expert in range(len(chunk.experts))]
        if chunk.start == 0 and any(keep == 0 for _, keep in bands):
            warnings.warn(
                f"breadcrumbs: rows of {row} in tensor {chunk.tensor!r} are too short to keep an entry and lose all "
                "their changes; raise density or use the definition 'paper' or 'mergekit'",
                stacklevel=2,
            )
        for deltas, (top, keep) in zip(chunk.deltas, bands, strict=True):
            if (top, keep) != (0, row):
                row_kernels().row_band(deltas, row, top, keep)


class TensorBand:
    """Zero the outliers of a tensor and all but the largest of the rest; of equals the lowest index stays first."""

    whole_rows = False

    def __init__(self, experts: int, band: Band) -> None:
        self.experts = experts
        self.band = band

    def surveys(self, before: Sequence[Sparsifier]) -> tuple[Survey, ...]:
        """Two passes, for the limits on both sides."""

        def ranks(expert: int, size: int, filled: int) -> tuple[int, ...]:
            top, keep = self.band(expert, size)
            return top, top + keep

        return Selection("band", self.experts, deltas_after(before), ranks, local=True).surveys()

    def apply(self, chunk: Chunk, known: Statistics) -> None:
        """Zero what is outside the band."""
        quotas = chunk.carry.setdefault("band", [_quotas(high, low) for high, low in known["band"]])
        for expert, (high, low) in enumerate(known["band"]):
            if high == NOTHING and low is None:
                continue
            deltas, quota = chunk.deltas[expert], quotas[expert]
            patterns = [high.pattern if high else 0, low.pattern if low else 0]
            used = row_kernels().magnitude_band(deltas, patterns[0], quota[0], patterns[1], quota[1])
            quota -= used


def _quotas(high: Limit | None, low: Limit | None) -> NDArray[np.int64]:
    """Return how many entries equal to the limits stay: what the outliers leave, and what the band takes."""
    above = high.equal - high.within if high else 0
    if low is None:  # zeros may all stay
        return np.array([above, np.iinfo(np.int64).max])
    within = low.within - (high.within if high and high.pattern == low.pattern else 0)
    return np.array([above, within])
