"""Embedding and head tensors whose rows are gathered from other tensors: an index map, nothing is copied."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import DTYPES, encode
from consilience.checkpoints.sources import Source, Stored

__all__ = ["AVERAGE", "PADDING", "ZERO", "RowMap", "Rows"]

ZERO, PADDING, AVERAGE = -1, -2, -3
"""Origins of rows that no single row of a tensor gives: zeros, the mean of all rows with a token, a mean of some."""

_BLOCK = 1 << 17
"""Elements read at a time where rows are gathered from a stretch of a tensor."""

_GAP = 1 << 13
"""Elements that cost about as much to read in passing as a read of their own."""


@dataclass(frozen=True, eq=False)
class RowMap:
    """Where each row comes from: `origin` is the number of a tensor (or ZERO, PADDING, AVERAGE), `row` its row there.

    For AVERAGE, `row` is a place in `averages`, each a list of (tensor, row).
    """

    origin: NDArray[np.int32]
    row: NDArray[np.int64]
    averages: tuple[tuple[tuple[int, int], ...], ...] = ()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.origin)

    @cached_property
    def checksum(self) -> str:
        """Equal for equal maps."""
        digest = xxhash.xxh3_64(self.origin.tobytes())
        digest.update(self.row.tobytes())
        digest.update(repr(self.averages).encode())
        return digest.hexdigest()

    def used(self) -> list[int]:
        """Return the numbers of the tensors that rows come from."""
        found = {int(number) for number in np.unique(self.origin) if number >= 0}
        return sorted(found | {tensor for average in self.averages for tensor, _ in average})

    def renumbered(self, used: list[int]) -> RowMap:
        """Return the map for a shorter list of tensors, those that are used."""
        place = {number: index for index, number in enumerate(used)}
        lookup = np.arange(max(used, default=-1) + 2, dtype=np.int32)
        for number, index in place.items():
            lookup[number] = index
        origin = np.where(self.origin >= 0, lookup[np.maximum(self.origin, 0)], self.origin).astype(np.int32)
        averages = tuple(tuple((place[t], row) for t, row in average) for average in self.averages)
        return RowMap(origin, self.row, averages)

    def is_identity(self, tensor: int, rows: int) -> bool:
        """Whether the map gives the rows of one tensor, in order."""
        return len(self) == rows and bool((self.origin == tensor).all()) and bool((self.row == np.arange(rows)).all())


@dataclass(frozen=True, eq=False)
class Rows:
    """A tensor whose rows along the vocabulary are those of `sources` that `map` names. Plain data, picklable.

    >>> from consilience.merging.memory import InMemory
    >>> words = InMemory(np.float32([1, 1, 2, 2]), "F32", (2, 2))
    >>> rows = Rows((words,), RowMap(np.int32([0, ZERO, 0]), np.array([1, 0, 0])), "F32", (3, 2))
    >>> out = np.empty(6, np.float32)
    >>> rows.read(0, 6, out)
    >>> out.tolist()
    [2.0, 2.0, 0.0, 0.0, 1.0, 1.0]

    Only the rows asked for are read, runs of consecutive rows at once. A row of PADDING needs all rows: their mean is
    computed once, in float64.
    """

    sources: tuple[Source, ...]
    map: RowMap
    dtype: str
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Rows({self.sources!r}, map={self.map.checksum}, dtype={self.dtype!r}, shape={self.shape})"

    @property
    def width(self) -> int:
        """Elements of one row."""
        return self.numel // len(self.map) if len(self.map) else 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes when stored."""
        return self.numel * DTYPES[self.dtype].itemsize

    def inputs(self) -> tuple[Stored, ...]:
        """Return the ranges of files behind all sources."""
        return tuple(stored for source in self.sources for stored in source.inputs())

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode elements [start, stop) into `out` (1-D, float32 or float64)."""
        if not 0 <= start <= stop <= self.numel or out.shape != (stop - start,):
            raise ValueError(f"elements [{start}, {stop}) of {self.numel} into an array of shape {out.shape}")
        if start == stop:
            return
        width = self.width
        first, last = start // width, -(-stop // width)
        origin, row = self.map.origin[first:last], self.map.row[first:last]
        if origin[0] >= 0 and bool((origin == origin[0]).all()) and bool((np.diff(row) == 1).all()):
            begin = int(row[0]) * width + start - first * width
            self.sources[origin[0]].read(begin, begin + stop - start, out)
            return
        table = np.empty((last - first, width), out.dtype)
        self._gather(origin, row, table)
        out[:] = table.reshape(-1)[start - first * width : stop - first * width]

    def read_raw(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) rounded to the type."""
        values = np.empty(stop - start, np.float64)
        self.read(start, stop, values)
        raw = np.empty(stop - start, DTYPES[self.dtype].storage)
        encode(values, self.dtype, raw)
        return raw

    def _gather(self, origin: NDArray[np.int32], row: NDArray[np.int64], table: NDArray[Any]) -> None:
        for kind in np.unique(origin):
            places = np.flatnonzero(origin == kind)
            if kind >= 0:
                table[places] = self._rows_of(int(kind), row[places], table.dtype)
            elif kind == ZERO:
                table[places] = 0
            elif kind == PADDING:
                table[places] = self.mean_row
            else:
                for place in places:
                    table[place] = self._average(self.map.averages[row[place]])

    def _rows_of(self, number: int, rows: NDArray[np.int64], dtype: Any) -> NDArray[Any]:
        """Read rows of one source: those that lie close together in one go, a bounded number of elements at a time."""
        source, width = self.sources[number], self.width
        wanted, places = np.unique(rows, return_inverse=True)
        found = np.empty((len(wanted), width), dtype)
        for left, right in self._stretches(wanted):
            low, high = int(wanted[left]), int(wanted[right - 1]) + 1
            if high - low == right - left:
                source.read(low * width, high * width, found[left:right].reshape(-1))
                continue
            block = np.empty((high - low) * width, dtype)
            source.read(low * width, high * width, block)
            found[left:right] = block.reshape(-1, width)[wanted[left:right] - low]
        return np.asarray(found[places])

    def _stretches(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Cut ascending row numbers where a gap costs more to read than a second read, and at a largest size."""
        gap = _GAP // max(self.width, 1) + 1
        most = max(1, _BLOCK // max(self.width, 1))
        edges = [0, *(np.flatnonzero(np.diff(wanted) > gap) + 1).tolist(), len(wanted)]
        for first, last in pairwise(edges):
            while first < last:
                end = min(last, int(np.searchsorted(wanted, wanted[first] + most)))
                yield first, end
                first = end

    def _average(self, parts: tuple[tuple[int, int], ...]) -> NDArray[np.float64]:
        total = np.zeros(self.width)
        for number, row in parts:
            values = np.empty(self.width)
            self.sources[number].read(row * self.width, (row + 1) * self.width, values)
            total += values
        return total / len(parts)

    @cached_property
    def mean_row(self) -> NDArray[np.float64]:
        """The mean of all rows that have a token."""
        total, count = np.zeros(self.width), 0
        block = max(1, _BLOCK // max(self.width, 1))
        for first in range(0, len(self.map), block):
            origin, row = self.map.origin[first : first + block], self.map.row[first : first + block]
            real = origin != PADDING
            table = np.empty((int(real.sum()), self.width))
            self._gather(origin[real], row[real], table)
            total += table.sum(axis=0)
            count += len(table)
        return total / max(count, 1)
