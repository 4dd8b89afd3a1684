"""Finds entries by their rank in magnitude, exactly and without sorting: two passes that count patterns.

The first pass counts the upper 16 bits of every magnitude's float32 pattern, the second the lower 16 bits of those
that share the upper bits of a wanted rank. Where ranks are those of one tensor, its first chunk tells near which upper
bits they will be, the first pass counts the lower bits there too, and the second is needed only where that was wrong.
Shared by every method that keeps the largest of something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.steps import Chunk, Statistics, Survey

__all__ = ["NOTHING", "Limit", "Selection", "Series"]

Series = Callable[[Chunk, Statistics], NDArray[Any]]
"""Gives the values of a chunk that are ranked: shape (series, elements)."""


@dataclass(frozen=True)
class Limit:
    """Where a rank falls: the pattern at it, how many entries equal to it are within the rank, and how many equal it.

    With global scope the two counts are those of one tensor, earlier names first.
    """

    pattern: int
    within: int
    equal: int


NOTHING = Limit(0xFFFFFFFF, 0, 0)
"""The limit of rank 0: no magnitude reaches it."""


class Selection:
    """The limits of given ranks, by descending magnitude, in each of several series.

    `ranks(series, size, filled)` says which of `size` values, `filled` of them not zero; `filled` is counted where
    `count_filled`. After its surveys the statistics hold, under `name`, per series one limit per rank, None where the
    rank takes everything.
    """

    def __init__(
        self,
        name: str,
        series: int,
        values: Series,
        ranks: Callable[[int, int, int], tuple[int, ...]],
        *,
        count_filled: bool = False,
        local: bool = False,
    ) -> None:
        self.name = name
        self.series = series
        self.values = values
        self.ranks = ranks
        self.count_filled = count_filled
        self.local = local

    def surveys(self) -> tuple[Survey, ...]:
        """Return the two passes."""
        return (_UpperSurvey(self), _LowerSurvey(self))


Filled = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
Lower = dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Counts of the lower bits, by series and upper bits."""


def _filled(counts: NDArray[np.int64]) -> Filled:
    """Return the bins that hold something, and their counts, of each row."""
    bins = [np.flatnonzero(row) for row in counts]
    return [(where, row[where]) for where, row in zip(bins, counts, strict=True)]


def _total(states: Sequence[Filled], rows: int) -> NDArray[np.int64]:
    total = np.zeros((rows, 65536), np.int64)
    for state in states:
        for row, (bins, counts) in zip(total, state, strict=True):
            row[bins] += counts
    return total


def _bin_of_rank(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Return the bin that holds the `rank`-th largest entry (from 1), and its rank within that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - above


_MARGIN = 2  # upper bits counted on either side of the expected ones

Windows = list[tuple[int, int, NDArray[np.int64]]]
"""Counts of whole patterns: the series, the first of the upper bits, and a row of counts for each."""


@dataclass
class _Upper:
    counts: NDArray[np.int64]
    filled: list[int]
    windows: Windows = field(default_factory=list)


class _UpperSurvey:
    """Counts the upper halves of the patterns, and so finds the bin of each rank."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection

    def start(self) -> _Upper:
        return _Upper(np.zeros((self.selection.series, 65536), np.int64), [0] * self.selection.series)

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        values = self.selection.values(chunk, known)
        for series, row in enumerate(values):
            kernels().magnitude_histogram(row, -1, state.counts[series])
            if self.selection.count_filled:
                state.filled[series] += int(np.count_nonzero(row))
        if self.selection.local and chunk.start == 0:
            state.windows = self._expected(state, chunk.stop, math.prod(chunk.shape))
        for series, first, counts in state.windows:
            kernels().magnitude_window(values[series], first, counts)

    def _expected(self, state: _Upper, seen: int, size: int) -> Windows:
        """Return empty windows around the bins where the ranks fall among the elements seen so far."""
        margin = _MARGIN if seen < size else 0
        firsts: dict[tuple[int, int], None] = {}
        for series, counts in enumerate(state.counts):
            filled = round(state.filled[series] * size / seen)
            for rank in self.selection.ranks(series, size, filled):
                if 0 < rank < size:
                    place = _bin_of_rank(counts, min(max(round(rank * seen / size), 1), seen))[0]
                    firsts[series, min(max(place - margin, 0), 65535 - 2 * margin)] = None
        return [(series, first, np.zeros((2 * margin + 1, 65536), np.int64)) for series, first in firsts]

    def close(self, state: Any) -> tuple[Filled, list[int], Windows]:
        return _filled(state.counts), state.filled, state.windows

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        total = _total([counts for counts, _, _ in states], self.selection.series)
        size = sum(sizes)
        places: list[tuple[tuple[int, int] | None, ...]] = []
        for series, counts in enumerate(total):
            ranks = self.selection.ranks(series, size, sum(filled[series] for _, filled, _ in states))
            # (bin, rank within it); rank 0 needs no bin, a rank that takes everything has no limit
            places.append(tuple(None if r >= size else (-1, 0) if r <= 0 else _bin_of_rank(counts, r) for r in ranks))
        for statistics in known:
            statistics[f"{self.selection.name}_places"] = places
        if len(states) == 1:
            _settle(self.selection.name, states[0][2], known[0])


def _settle(name: str, windows: Windows, statistics: Statistics) -> None:
    """Write the limits if the windows cover the bins of all ranks."""
    lower: Lower = {}
    for series, prefix in _bins(statistics[f"{name}_places"]):
        for owner, first, counts in windows:
            if owner == series and 0 <= prefix - first < len(counts):
                lower[series, prefix] = _filled(counts[prefix - first][None])[0]
                break
        else:
            return
    _write_limits(name, [lower], [statistics])
    statistics[f"{name}_settled"] = True


class _LowerSurvey:
    """Counts the lower halves of the patterns in the bins of the ranks, and so finds the limits."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection

    def start(self) -> dict[tuple[int, int], NDArray[np.int64]]:
        return {}

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        wanted = _bins(known[f"{self.selection.name}_places"])
        if not wanted:
            return
        values = self.selection.values(chunk, known)
        for series, prefix in wanted:
            counts = state.setdefault((series, prefix), np.zeros(65536, np.int64))
            kernels().magnitude_histogram(values[series], prefix, counts)

    def close(self, state: Any) -> Lower:
        return {key: _filled(counts[None])[0] for key, counts in state.items()}

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        _write_limits(self.selection.name, states, known)

    def settled(self, known: Statistics) -> bool:
        """Whether the first pass has already found the limits."""
        return bool(known.get(f"{self.selection.name}_settled"))


def _write_limits(name: str, states: Sequence[Lower], known: Sequence[Statistics]) -> None:
    """Write the limits of every rank into the statistics of every tensor, from the counts of lower bits."""
    places = known[0][f"{name}_places"]
    total = {key: _total([[state[key]] for state in states], 1)[0] for key in _bins(places)}
    limits: list[list[list[Limit | None]]] = [[[] for _ in places] for _ in states]
    for series, ranks in enumerate(places):
        for place in ranks:
            found = _limits(place, series, total, states)
            for tensor, limit in zip(limits, found, strict=True):
                tensor[series].append(limit)
    for statistics, tensor in zip(known, limits, strict=True):
        statistics[name] = tensor


def _bins(places: Sequence[tuple[tuple[int, int] | None, ...]]) -> list[tuple[int, int]]:
    """Return the (series, bin) whose lower halves are to be counted, each once."""
    found = {(s, p[0]): None for s, ranks in enumerate(places) for p in ranks if p is not None and p[0] >= 0}
    return list(found)


def _limits(
    place: tuple[int, int] | None, series: int, total: dict[tuple[int, int], Any], states: Sequence[Any]
) -> list[Limit | None]:
    """Return the limit of one rank for each tensor."""
    if place is None:
        return [None] * len(states)
    prefix, rank = place
    if prefix < 0:
        return [NOTHING] * len(states)
    lower, within = _bin_of_rank(total[series, prefix], rank)
    found: list[Limit | None] = []
    for state in states:
        bins, counts = state[series, prefix]
        equal = int(counts[bins == lower].sum())
        found.append(Limit(prefix << 16 | lower, min(within, equal), equal))
        within -= min(within, equal)
    return found
