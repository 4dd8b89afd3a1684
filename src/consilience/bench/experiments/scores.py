"""Scores per example of several tasks, and paired differences over examples and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.bench.bootstrap import RESAMPLES, interval, resampled_means
from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import DataError

__all__ = ["Paired", "Scores", "compare"]


@dataclass(frozen=True)
class Scores:
    """What one model scored on every example of every task.

    >>> a = Scores({"trec": np.array([1.0, 0.0]), "news": np.array([1.0, 1.0, 1.0, 0.0])})
    >>> a.by_task, a.mean, a.n
    ({'trec': 0.5, 'news': 0.75}, 0.625, 6)
    >>> (a - a).mean
    0.0

    `mean` is the mean over tasks of their means: a task counts once, however many examples it has.
    """

    by_example: Mapping[str, NDArray[np.float64]] = field(repr=False)

    @property
    def by_task(self) -> dict[str, float]:
        """Task -> mean score."""
        return {task: float(np.mean(scores)) for task, scores in self.by_example.items()}

    @property
    def mean(self) -> float:
        """Mean over tasks."""
        return float(np.mean(list(self.by_task.values())))

    @property
    def n(self) -> int:
        """Number of examples of all tasks."""
        return sum(len(scores) for scores in self.by_example.values())

    def __repr__(self) -> str:
        return f"Scores(mean={self.mean:.4f}, tasks={len(self.by_example)}, n={self.n})"

    def __sub__(self, other: Scores) -> Scores:
        """Return the paired differences; both must be of the same tasks and examples."""
        sizes, others = ({task: len(scores) for task, scores in one.by_example.items()} for one in (self, other))
        if sizes != others:
            raise DataError(f"scores of {sizes} examples and of {others} cannot be paired: measure both on the same")
        return Scores({task: scores - other.by_example[task] for task, scores in self.by_example.items()})

    def only(self, tasks: Iterable[str]) -> Scores:
        """Return the scores of some of the tasks."""
        return Scores({task: self.by_example[task] for task in tasks})


class Paired(NamedTuple):
    """A mean (difference) with its 95 % interval, examples of all tasks, number of seeds, and the mean of each seed."""

    difference: float
    low: float
    high: float
    n: int
    seeds: int
    by_seed: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def compare(
    a: Scores | Sequence[Scores],
    b: Scores | Sequence[Scores] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """Return the mean of `a` - `b` with a 95 % interval over examples and seeds; without `b`, the mean of `a`.

    >>> good, bad = Scores({"t": np.ones(50)}), Scores({"t": np.arange(50.0) % 2})
    >>> found = compare([good, good], [bad, bad])
    >>> found.difference, found.low > 0.3, found.seeds, found.n
    (0.5, True, 2, 50)

    a, b: one Scores per seed, in the same order of seeds, of the same tasks and examples. Examples are resampled
    within their task and are the same for all seeds; seeds are resampled too, independently, so the interval is for
    other examples and other seeds. Few seeds make it rough: read `by_seed` beside it.

    Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993); A. Owen, The pigeonhole bootstrap (2007).
    """
    first = [a] if isinstance(a, Scores) else list(a)
    second = None if b is None else [b] if isinstance(b, Scores) else list(b)
    if not first or (second is not None and len(first) != len(second)):
        raise DataError(f"scores of {len(first)} seeds and of {len(second or ())} cannot be paired")
    paired = first if second is None else [one - other for one, other in zip(first, second, strict=True)]
    tasks = list(paired[0].by_example)
    for other in paired[1:]:
        _ = paired[0] - other  # the same tasks and examples
    seeds = len(paired)
    means = np.zeros((resamples, seeds))
    for task in tasks:
        values = np.stack([scores.by_example[task] for scores in paired], axis=1)
        if not len(values) or not np.isfinite(values).all():
            raise DataError(f"task {task}: no scores, or a score that is NaN or infinite")
        means += resampled_means(values, name=task, resamples=resamples, seed=seed) / len(tasks)
    drawn = uniform_bits(stream_key(seed, "bootstrap seeds"), 0, resamples * seeds).astype(np.uint64)
    columns = ((drawn * np.uint64(seeds)) >> np.uint64(32)).astype(np.int64).reshape(resamples, seeds)
    samples = np.take_along_axis(means, columns, axis=1).mean(axis=1)
    by_seed = tuple(scores.mean for scores in paired)
    return Paired(float(np.mean(by_seed)), *interval(samples), paired[0].n, seeds, by_seed)
