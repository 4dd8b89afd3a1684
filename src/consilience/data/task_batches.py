"""Batches over several datasets: which rows of which dataset a training step takes, on which device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import DataError, Problems, RequestError, did_you_mean

__all__ = ["SAMPLERS", "DatasetSize", "TaskBatches"]

SAMPLERS = ("dynamic", "single", "mixed")
Sampler = Literal["dynamic", "single", "mixed"]


@dataclass(frozen=True)
class DatasetSize:
    """A dataset as the sampler sees it: its number of rows, and the rows per device of a batch of its task."""

    rows: int
    batch: int


class TaskBatches:
    """Batches over datasets, a function of (seed, step) alone.

    >>> batches = TaskBatches({"law": DatasetSize(10, 4), "pairs": DatasetSize(7, 3)}, seed=1)
    >>> len(batches), batches.counts
    (4, {'law': 2, 'pairs': 2})
    >>> [list(batches.at(step)) for step in range(4)]
    [['law'], ['law'], ['pairs'], ['pairs']]

    A step's batch is a mapping from dataset to rows. sampler "dynamic": every dataset gives as many batches as are
    full, rows // (batch x ranks), each from it alone, drawn anew in every epoch, the remainder left out; the batches of
    all datasets are shuffled together. So a step never mixes datasets, each task has its own batch size, and a dataset
    is as often on turn as it has batches. "single": the same with the first dataset's batch size for all. "mixed":
    rows of all datasets are shuffled together, so that a batch mixes them. The last two are baselines.

    ranks: devices that work together; `at(step, rank)` gives each a slice of the same batch, disjoint from the
    others'. `notices` name the datasets that are smaller than a batch, and so never on turn. Raises RequestError for
    wrong settings, DataError when no dataset fills a batch. Source: CoDiEmb, 2025 (TencentCloudADP/youtu-embedding).
    """

    def __init__(
        self,
        datasets: Mapping[str, DatasetSize],
        *,
        sampler: Sampler = "dynamic",
        ranks: int = 1,
        seed: int = 0,
    ) -> None:
        problems = Problems()
        if sampler not in SAMPLERS:
            problems.add(f"sampler {sampler!r} is unknown{did_you_mean(sampler, SAMPLERS)}")
        if ranks < 1:
            problems.add(f"ranks is {ranks}; it has to be at least 1")
        for name, size in datasets.items():
            if size.batch < 1:
                problems.add(f"{name}: the batch is {size.batch}; it has to be at least 1")
        if not datasets:
            problems.add("no datasets were given")
        problems.raise_if_any(RequestError, "batches")
        first = next(iter(datasets.values())).batch
        self.datasets = {
            name: size if sampler == "dynamic" else DatasetSize(size.rows, first) for name, size in datasets.items()
        }
        self.sampler, self.ranks, self.seed = sampler, ranks, seed
        total = sum(size.rows for size in self.datasets.values())
        self.counts = {name: size.rows // (size.batch * ranks) for name, size in self.datasets.items()}
        self._steps = total // (first * ranks) if sampler == "mixed" else sum(self.counts.values())
        self.notices: tuple[str, ...] = ()
        if sampler != "mixed":
            self.notices = tuple(
                f"dataset {name}: {self.datasets[name].rows} rows do not fill a batch of "
                f"{self.datasets[name].batch * ranks}; it takes no part in training"
                for name, count in self.counts.items()
                if not count
            )
        if not self._steps:
            raise DataError(
                "no dataset fills a batch: "
                + ", ".join(f"{name} {size.rows} rows of {size.batch * ranks}" for name, size in self.datasets.items())
                + "; use smaller batches"
            )
        self._known: tuple[int, list[dict[str, NDArray[np.int64]]]] = (-1, [])

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return self._steps

    def at(self, step: int, rank: int = 0) -> dict[str, NDArray[np.int64]]:
        """Return the rows of each dataset that a device takes in a step (0, 1, ...)."""
        if not 0 <= rank < self.ranks:
            raise RequestError(f"rank {rank} of {self.ranks}; ranks are 0 to {self.ranks - 1}")
        epoch, place = divmod(step, self._steps)
        if self._known[0] != epoch:
            self._known = (epoch, self._mixed(epoch) if self.sampler == "mixed" else self._apart(epoch))
        batch = self._known[1][place]
        if self.sampler != "mixed":
            return {name: np.array_split(rows, self.ranks)[rank] for name, rows in batch.items()}
        # the rows of a mixed batch in one line, cut into equal parts
        names = np.concatenate([np.full(len(rows), place) for place, rows in enumerate(batch.values())])
        lines = np.concatenate(list(batch.values()))
        mine = np.array_split(np.arange(len(lines)), self.ranks)[rank]
        parts = {name: lines[mine[names[mine] == place]] for place, name in enumerate(batch)}
        return {name: rows for name, rows in parts.items() if len(rows)}

    def _order(self, epoch: int, name: str, count: int) -> NDArray[np.int64]:
        draws = uniform_bits(stream_key(self.seed, "order", name, str(epoch)), 0, count)
        return np.argsort(draws, kind="stable")

    def _apart(self, epoch: int) -> list[dict[str, NDArray[np.int64]]]:
        batches = []
        for name, size in self.datasets.items():
            order, whole = self._order(epoch, f"rows of {name}", size.rows), size.batch * self.ranks
            batches += [{name: order[at * whole : (at + 1) * whole]} for at in range(self.counts[name])]
        return [batches[place] for place in self._order(epoch, "batches", len(batches))]

    def _mixed(self, epoch: int) -> list[dict[str, NDArray[np.int64]]]:
        names = list(self.datasets)
        which = np.concatenate([np.full(size.rows, i) for i, size in enumerate(self.datasets.values())])
        rows = np.concatenate([np.arange(size.rows) for size in self.datasets.values()])
        order = self._order(epoch, "all rows", len(rows))
        whole = self.datasets[names[0]].batch * self.ranks
        batches = []
        for at in range(self._steps):
            taken = order[at * whole : (at + 1) * whole]
            found = {name: rows[taken[which[taken] == place]] for place, name in enumerate(names)}
            batches.append({name: part for name, part in found.items() if len(part)})
        return batches
