"""Kernels of rows, bands of magnitude and votes in plain NumPy; the rules of `reference` hold here too.

A row is a run of `row` elements; arrays hold whole rows. Magnitudes are compared as float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import uniform_bits
from consilience.merging.kernels import LANES

Work = NDArray[Any]
Sums = NDArray[np.float64]


def _keys(values: Work) -> NDArray[np.uint32]:
    return values.astype(np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)


def rank_rows(values: Work, row: int, out: NDArray[np.uint32]) -> None:
    """Out = the rank of each element's magnitude in its row, 0 the smallest; of equals the lowest index is highest."""
    keys = _keys(values).reshape(-1, row)[:, ::-1]
    order = row - 1 - np.argsort(keys, axis=1, kind="stable")
    np.put_along_axis(out.reshape(-1, row), order, np.arange(row, dtype=np.uint32)[None, :], axis=1)


def ranked_keep(
    ranks: NDArray[np.uint32], thresholds: NDArray[np.uint64], key: int, start: int, out: NDArray[np.bool_]
) -> None:
    """Out[j] = whether draw start + j of the stream is below the threshold (of 2**32) of its rank."""
    out[:] = uniform_bits(key, start, len(out)) < thresholds[ranks]


def ranked_draw(
    values: Work, row: int, thresholds: NDArray[np.uint64], key: int, start: int, out: NDArray[np.bool_]
) -> None:
    """Out[j] = whether draw start + j of the stream is below the threshold (of 2**32) of its rank in its row."""
    ranks = np.empty(values.size, np.uint32)
    rank_rows(values, row, ranks)
    ranked_keep(ranks, thresholds, key, start, out)


def magnitude_band(deltas: Work, high: int, high_quota: int, low: int, low_quota: int) -> tuple[int, int]:
    """Zero, in place, what is not in a band of magnitude; return the quotas used.

    Kept are the patterns between `low` and `high` and the first `high_quota` and `low_quota` of those equal to one of
    them; where the two are the same pattern only `low_quota` counts.
    """
    keys = _keys(deltas)
    top, bottom = keys == np.uint32(high), keys == np.uint32(low)
    if high == low:
        top[:] = False
    top &= np.cumsum(top) <= high_quota
    bottom &= np.cumsum(bottom) <= low_quota
    between = (keys > np.uint32(low)) & (keys < np.uint32(high))
    np.copyto(deltas, 0, where=~(between | top | bottom))
    return int(top.sum()), int(bottom.sum())


def row_band(deltas: Work, row: int, top: int, keep: int) -> None:
    """Zero, in place, the `top` largest magnitudes of each row and all but the `keep` largest of the rest.

    Of equals at either limit the lowest index is kept first.
    """
    last = min(top + keep, row)
    for part in deltas.reshape(-1, row):
        if keep <= 0 or top >= row:
            part[:] = 0
            continue
        keys = _keys(part)
        down = np.sort(keys)[::-1]
        high, high_quota = 0xFFFFFFFF, 0
        if top > 0:
            high = int(down[top - 1])
            high_quota = int((keys >= high).sum()) - top
        low = int(down[last - 1])
        low_quota = keep if low == high else last - int((keys > low).sum())
        magnitude_band(part, high, high_quota, low, low_quota)


def _row_sums(values: Sums, row: int) -> Sums:
    """Sum rows: lanes run down the row, then the lanes are added in order. Rows are zero-padded to whole lanes."""
    rows = values.reshape(-1, row)
    padded = np.zeros((len(rows), -(-row // LANES) * LANES))
    padded[:, :row] = rows
    lanes = np.add.reduce(padded.reshape(len(rows), -1, LANES), axis=1, initial=0.0)
    total: Sums = lanes[:, 0].copy()
    for lane in range(1, LANES):
        total += lanes[:, lane]
    return total


def row_dots(a: Work, b: Work, row: int, out: Sums) -> None:
    """out[r] = float64 dot product of row r of a and b."""
    out[:] = _row_sums(a.astype(np.float64) * b.astype(np.float64), row)


def row_norms(a: Work, row: int, out: Sums) -> None:
    """out[r] = float64 sum of magnitudes of row r."""
    out[:] = _row_sums(np.abs(a.astype(np.float64)), row)


def column_dots(a: Work, b: Work, first: int, out: Sums) -> None:
    """Add products to the columns they belong to, in order: out[(first + j) % columns] += a[j] * b[j] in float64."""
    columns = len(out)
    lead = first % columns
    padded = np.zeros(-(-(lead + len(a)) // columns) * columns)
    padded[lead : lead + len(a)] = a.astype(np.float64) * b.astype(np.float64)
    rows = np.concatenate((out[None, :], padded.reshape(-1, columns)))
    out[:] = np.add.accumulate(rows, axis=0)[-1]


def spread(deltas: Work, out: NDArray[np.float32]) -> None:
    """Out = standard deviation across experts of each element; exactly 0 where all are equal."""
    shifted = deltas.astype(np.float64) - deltas[0].astype(np.float64)
    mean = np.zeros(len(out))
    for row in shifted:
        mean += row
    share = 1.0 / len(shifted)
    mean *= share
    total = np.zeros(len(out))
    for row in shifted:
        total += (row - mean) * (row - mean)
    out[:] = np.sqrt(total * share)


def elected_mean(deltas: Work, weights: Work, floor: float, out: Work) -> None:
    """Elect the sign of the plain sum (a sum of 0 elects plus) and average by weight the deltas that have it.

    The sum of the agreeing weights counts as at least `floor`, and as 1 where both are 0.
    """
    vote = np.zeros_like(out)
    for row in deltas:
        vote += row
    out[:] = 0
    share = np.zeros_like(out)
    for row, weight in zip(deltas, weights, strict=True):
        agrees = np.where(vote >= 0, row > 0, row < 0)
        np.add(out, row * weight, out=out, where=agrees)
        np.add(share, weight, out=share, where=agrees)
    np.maximum(share, out.dtype.type(floor), out=share)
    share[share == 0] = 1
    out /= share
