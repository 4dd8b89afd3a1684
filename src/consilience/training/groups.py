"""Queries with several positives and hard negatives: which documents go with a query in an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import stream_key, uniform_bits
from consilience.data import TrainingPairs
from consilience.errors import DataError

__all__ = ["Group", "Groups"]


@dataclass(frozen=True)
class Group:
    """Documents of a batch of queries: positions in `Groups.documents`.

    `positives` (queries, slots) and `negatives` (queries, count) int64; `left_out` bool (slots, queries, queries +
    queries x count): candidates of a slot that are relevant for the query of the row.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    left_out: NDArray[np.bool_]


class Groups:
    """Positives and hard negatives of training queries, a function of (seed, epoch, query) alone.

    >>> from consilience.data import Documents, TrainingPairs
    >>> documents = Documents(("d1", "d2", "d3"), ("x", "y", "z"))
    >>> pairs = TrainingPairs("tiny", ("a", "b"), ((0,), (1,)), ((2,), ()), documents)
    >>> groups = Groups(pairs, positives=1, negatives=1, seed=0)
    >>> group = groups.at(np.array([0, 1]), epoch=0)
    >>> group.positives.tolist(), group.negatives[0].tolist(), int(group.negatives[1, 0]) in (0, 2)
    ([[0], [1]], [2], True)

    positives: slots; a query with fewer relevant documents repeats them, one with more draws anew in every epoch.
    negatives: hard negatives per query; where fewer are judged, other documents fill up, never the query's own
    positives. `documents` holds the texts that are relevant or judged for some query. Raises DataError when a query
    has no document left that could be its negative.
    """

    def __init__(self, pairs: TrainingPairs, *, positives: int = 1, negatives: int = 0, seed: int = 0) -> None:
        used = sorted({document for judged in (pairs.positives, pairs.negatives) for row in judged for document in row})
        place = {document: index for index, document in enumerate(used)}
        self.name, self.seed, self.slots, self.count = pairs.name, seed, positives, negatives
        self.queries = pairs.queries
        self.documents = tuple(pairs.documents.texts[document] for document in used)
        self.relevant = [frozenset(place[document] for document in row) for row in pairs.positives]
        self.hard = [tuple(place[document] for document in row) for row in pairs.negatives]
        if negatives and any(len(row) >= len(used) for row in self.relevant):
            raise DataError(
                f"dataset {pairs.name}: all {len(used)} documents are relevant for one query, none is left as its "
                "negative; use negatives=0"
            )

    def __len__(self) -> int:
        return len(self.queries)

    def at(self, rows: NDArray[np.int64], epoch: int) -> Group:
        """Return the documents of some queries in an epoch (0, 1, ...)."""
        positives = np.stack([self._positives(int(row), epoch) for row in rows])
        negatives = np.stack([self._negatives(int(row), epoch) for row in rows])
        left_out = np.stack(
            [
                np.isin(np.concatenate([slot, negatives.ravel()])[None, :], list(self.relevant[int(row)]))[0]
                for slot in positives.T
                for row in rows
            ]
        )
        return Group(positives, negatives, left_out.reshape(self.slots, len(rows), -1))

    def _draws(self, kind: str, row: int, epoch: int, count: int) -> NDArray[np.uint32]:
        return uniform_bits(stream_key(self.seed, kind, self.name, str(epoch), str(row)), 0, count)

    def _positives(self, row: int, epoch: int) -> NDArray[np.int64]:
        known = np.array(sorted(self.relevant[row]), np.int64)
        order = known[np.argsort(self._draws("positives", row, epoch, len(known)), kind="stable")]
        return np.resize(order, self.slots)

    def _negatives(self, row: int, epoch: int) -> NDArray[np.int64]:
        hard = np.array(self.hard[row], np.int64)
        chosen = hard[np.argsort(self._draws("negatives", row, epoch, len(hard)), kind="stable")][: self.count].tolist()
        attempt = 0
        while len(chosen) < self.count:
            draws = self._draws(f"padding {attempt}", row, epoch, 4 * self.count)
            found = (draws.astype(np.int64) * len(self.documents)) >> 32
            chosen += [place for place in found.tolist() if place not in self.relevant[row]]
            attempt += 1
        return np.array(chosen[: self.count], np.int64)
