"""Sparse: what an expert has beyond the shared weights, at a share of the entries.

"magnitude" keeps the int(density * entries) largest changes of every tensor (of equal ones those that come first);
"bernoulli" keeps every change with probability density and divides it by density. A bit per entry says which.

Source: Lu et al. 2024, Twin-Merging, arXiv 2406.15479; Yu et al. 2023, DARE, arXiv 2311.03099.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.residuals.per_tensor import Excluded, Part, PerTensor, opened_parts
from consilience.bundles.residuals.protocol import Computed
from consilience.bundles.weights import Given
from consilience.checkpoints.dtypes import DTYPES, encode, working_dtype
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.sources import Source, Stored
from consilience.core.randomness import keep_threshold, stream_key, uniform_bits
from consilience.errors import Problems

__all__ = ["KIND", "Scattered", "SparseChanges", "largest"]

Select = Literal["magnitude", "bernoulli"]
_BLOCK = 4096


class SparseChanges(PerTensor):
    """Changes at a share of the entries.

    density: that share, 0 to 1. select: "magnitude" or "bernoulli". seed: of the draws. exclude, excluded, dtype: see
    `PerTensor`.
    """

    kind: ClassVar[str] = "sparse"

    def __init__(
        self,
        density: float = 0.1,
        select: Select = "magnitude",
        seed: int = 0,
        exclude: Sequence[str] = (),
        excluded: Excluded = "own",
        dtype: str | None = None,
    ) -> None:
        super().__init__(exclude, excluded, dtype)
        self.density, self.select, self.seed = density, select, seed

    def settings(self) -> dict[str, Any]:
        """Return density, selection, seed, and what `PerTensor` has."""
        return {"density": self.density, "select": self.select, "seed": self.seed, **super().settings()}

    def check(self, base: Given, experts: Mapping[str, Given], problems: Problems) -> None:
        """Report a density that is out of range and an unknown selection."""
        super().check(base, experts, problems)
        if not 0 < self.density <= 1:
            problems.add(f"density: {self.density!r} is not above 0 and at most 1")
        if self.select not in get_args(Select):
            problems.add(f"select: {self.select!r} is not one of {', '.join(get_args(Select))}")

    def parts(self, name: str, expert: str, source: Source, dtype: str) -> list[Part]:
        """Return bits and values; nothing from density 1 on."""
        if self.density >= 1:
            return []
        if self.select == "magnitude":
            count = int(self.density * source.numel)
        else:
            count = int(np.count_nonzero(self._drawn(name, expert, source.numel)))
        return [Part("bits", "U8", (-(-source.numel // 8),)), Part("values", dtype, (count,))]

    def _drawn(self, name: str, expert: str, count: int) -> NDArray[np.bool_]:
        draws = uniform_bits(stream_key(self.seed, name, expert), 0, count)
        kept: NDArray[np.bool_] = draws < keep_threshold(self.density)
        return kept

    def compress(self, name: str, expert: str, change: NDArray[Any]) -> list[NDArray[Any]]:
        """Return which entries are kept, and the changes there."""
        flat = change.reshape(-1)
        if self.select == "bernoulli":
            keep = self._drawn(name, expert, flat.size)
            return [np.packbits(keep), flat[keep] / self.density]
        keep = largest(flat, int(self.density * flat.size))
        return [np.packbits(keep), flat[keep]]

    @staticmethod
    def open(folder: Path, record: Mapping[str, Any], expert: str, shared: Checkpoint) -> Checkpoint:
        """Return the expert: the shared ones plus the kept changes."""

        def make(source: Source, parts: Mapping[str, Stored]) -> Source:
            return Scattered(source, parts["bits"], parts["values"])

        return opened_parts(folder, record, expert, shared, make)


KIND = SparseChanges


def largest(values: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return where the `count` largest magnitudes are; of equal ones at the threshold the first.

    >>> largest(np.array([1.0, -3.0, 1.0, 0.5]), 2).tolist()
    [True, True, False, False]
    """
    keep = np.zeros(values.size, np.bool_)
    if count <= 0:
        return keep
    sizes = np.abs(values)
    threshold = np.partition(sizes, values.size - count)[values.size - count]
    keep[sizes > threshold] = True
    keep[np.flatnonzero(sizes == threshold)[: count - int(keep.sum())]] = True
    return keep


@dataclass(frozen=True, eq=False)
class Scattered(Computed):
    """A tensor plus changes at the entries that `bits` names, in their order."""

    bits: Stored
    values: Stored

    @cached_property
    def _before(self) -> NDArray[np.int64]:
        """How many values come before each block of entries."""
        packed = self.bits.read_raw(0, self.bits.numel)
        counts = [int(np.unpackbits(packed[at : at + _BLOCK // 8]).sum()) for at in range(0, packed.size, _BLOCK // 8)]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Compute elements [start, stop) into `out`."""
        self.base.read(start, stop, out)
        if stop == start:
            return
        first = start // _BLOCK * _BLOCK
        packed = self.bits.read_raw(first // 8, -(-stop // 8))
        bits = np.unpackbits(packed, count=stop - first).view(np.bool_)
        skipped = int(self._before[start // _BLOCK]) + int(np.count_nonzero(bits[: start - first]))
        own = bits[start - first :]
        changes = np.empty(int(np.count_nonzero(own)), out.dtype)
        self.values.read(skipped, skipped + changes.size, changes)
        out[own] += changes

    def read_raw(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) rounded to the tensor's type."""
        values = np.empty(stop - start, working_dtype([self.dtype]))
        self.read(start, stop, values)
        raw: NDArray[Any] = np.empty(stop - start, DTYPES[self.dtype].storage)
        encode(values, self.dtype, raw)
        return raw

    def inputs(self) -> tuple[Stored, ...]:
        """Return the ranges of files behind it."""
        return (*self.base.inputs(), self.bits, self.values)
