"""Paired bootstrap intervals of differences between two models measured on the same queries."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import DataError

__all__ = ["CONFIDENCE", "RESAMPLES", "Difference", "interval", "paired_bootstrap", "resampled_means"]

CONFIDENCE = 0.95
RESAMPLES = 10_000
_BLOCK = 1 << 20  # draws made at a time


class Difference(NamedTuple):
    """A difference of means with its 95 % interval and the number of queries; nan bounds where n is below 2."""

    difference: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def resampled_means(
    values: NDArray[np.float64], *, name: str, resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Return the column means of `resamples` resamples of the rows, drawn with replacement.

    `values` is (queries, columns); the result is (resamples, columns). All columns share the draws, which depend on
    (seed, name) only, so differences of columns are paired.
    """
    count, columns = values.shape
    means = np.empty((resamples, columns))
    key = stream_key(seed, "bootstrap", name)
    step = max(_BLOCK // max(count, 1), 1)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        bits = uniform_bits(key, start * count, rows * count).astype(np.uint64)
        picked = ((bits * np.uint64(count)) >> np.uint64(32)).astype(np.int64).reshape(rows, count)
        picked += np.arange(rows)[:, None] * count
        times = np.bincount(picked.ravel(), minlength=rows * count).reshape(rows, count)
        means[start : start + rows] = (times @ values) / count
    return means


def interval(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Return the central 95 % of resampled values (percentile method)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    strata: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Return the mean of `a` - `b`, its 95 % interval over resampled queries, and n.

    >>> found = paired_bootstrap([0.9, 0.8, 1.0, 0.7], [0.5, 0.6, 0.7, 0.6])
    >>> round(found.difference, 3), found.n, found.excludes_zero
    (0.25, 4, True)

    a, b: one score per query, in the same order. strata: the group (domain) of every query; groups are resampled
    apart and the mean is the mean of group means. Raises DataError for unequal lengths, none or NaN.

    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), percentile interval.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    groups = [""] * len(first) if strata is None else list(strata)
    if first.ndim != 1 or first.shape != second.shape or len(groups) != len(first) or not len(first):
        raise DataError(
            f"paired bootstrap: {first.shape} and {second.shape} scores with {len(groups)} strata; "
            "one score per query for both models is needed, at least one query"
        )
    if resamples < 1:
        raise DataError(f"paired bootstrap: {resamples} resamples; use 1 or more (10000 is usual)")
    differences = first - second
    if not np.isfinite(differences).all():
        raise DataError("paired bootstrap: a score is NaN or infinite; leave failed queries out of both models")
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return combine({str(group): differences[rows] for group, rows in members.items()}, resamples=resamples, seed=seed)


def combine(differences: Mapping[str, NDArray[np.float64]], *, resamples: int, seed: int) -> Difference:
    """Return the mean of group means of paired differences with its interval."""
    centre = float(np.mean([values.mean() for values in differences.values()]))
    count = sum(len(values) for values in differences.values())
    if count < 2:
        return Difference(centre, float("nan"), float("nan"), count)
    samples = np.mean(
        [
            resampled_means(values[:, None], name=name, resamples=resamples, seed=seed)[:, 0]
            for name, values in differences.items()
        ],
        axis=0,
    )
    return Difference(centre, *interval(samples), count)
