"""The index of a batch search: rows by nearest centroid and leaf, bitmaps of filters, additions and deletions.

Every leaf has an inverted file over the same centroids. Its posting lists lie side by side in memory, those of one
centroid next to each other in the order of the leaves: what a filter lets through of a list is then often one run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.data.documents import Document
from consilience.errors import Problems, RequestError
from consilience.retrieval.batches.columns import Columns
from consilience.retrieval.batches.partition import Tree, Workload, grow
from consilience.stores.vectors import check_vectors
from consilience.stores.where import Filter, Where, parse_where

__all__ = ["BatchIndex", "HybridQuery", "Metric", "Selected"]

Metric = Literal["l2", "inner_product", "cosine"]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_DRIFTED = 1.5
_REMEMBERED = 256  # bitmaps


@dataclass(frozen=True)
class HybridQuery:
    """The `k` nearest rows that a filter is true of, among the `nprobe` nearest lists (the index's own by default).

    vector: (dimension,). metric: refused when it is not the index's.
    """

    vector: Any
    where: Where | None = None
    k: int = 10
    nprobe: int | None = None
    metric: Metric | None = None


@dataclass(frozen=True)
class Selected:
    """What a filter lets through, in the order of the layout.

    places: of rows that are let through; starts: where those of each list begin, (lists + 1); touched: rows in the
    leaves of a list that hold at least one; leaves: (lists, leaves), whether the leaf holds one in that list.
    """

    places: Ints
    starts: Ints
    touched: Ints
    leaves: NDArray[np.bool_]


class BatchIndex:
    """Vectors with attributes, laid out for a workload.

    >>> vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    >>> fields = [{"lang": "en" if row % 4 else "de"} for row in range(200)]
    >>> past = [HybridQuery(vector, "lang = 'de'") for vector in vectors[:20]]
    >>> index = BatchIndex.build(vectors, fields, workload=past, lists=4, nprobe=2, min_leaf=50)
    >>> len(index), index.tree.descriptions
    (200, ("lang = 'de'", "not (lang = 'de')"))

    `search_batch` and `search_one` search it. A writer and a search must not overlap.
    """

    def __init__(
        self, centroids: Floats, tree: Tree, metric: Metric, nprobe: int, min_leaf: int, keep: Sequence[Filter | None]
    ) -> None:
        self.centroids, self.tree, self.metric, self.nprobe, self.min_leaf = centroids, tree, metric, nprobe, min_leaf
        self.templates = tuple(keep)
        self.estimate = 0.0
        self.recall: float | None = None
        self._ids: list[str | int] = []
        self._row_of: dict[str | int, int] = {}
        self._rows = np.empty((0, centroids.shape[1]), np.float32)
        self.columns = Columns([])
        self._lists = np.empty(0, np.int64)
        self._leaves = np.empty(0, np.int64)
        self._live = np.empty(0, bool)
        self._known: dict[str, Selected] = {}
        self._laid_out = False
        self._observed = [0, 0]

    @classmethod
    def build(
        cls,
        vectors: Any,
        fields: Sequence[Mapping[str, Any] | Document] | Columns,
        *,
        ids: Sequence[str | int] | None = None,
        workload: Sequence[HybridQuery] = (),
        templates: Sequence[Where] = (),
        metric: Metric = "l2",
        lists: int | None = None,
        nprobe: int = 8,
        min_leaf: int = 256,
        centroid_cuts: int = 64,
        centroids: Any = None,
        seed: int = 0,
    ) -> BatchIndex:
        """Cluster the vectors, grow the tree for the workload, lay out the rows.

        vectors: (n, dimension), finite. fields: attributes per row, or the table of them. ids: texts or whole numbers,
        distinct, of one type; row numbers by default. workload: past queries; without them there is one leaf.
        templates: filters whose parts are tried as cuts before those of the workload. metric: "l2" (distances are
        squared), "inner_product" (negative) or "cosine" (1 - cosine). lists: posting lists, by default the root of n.
        nprobe: lists a query looks into. min_leaf: rows of the smallest leaf. centroid_cuts: as many of the workload's
        sets of probed lists are tried as cuts. centroids: (lists, dimension) instead of k-means, whose draws `seed`
        decides. Raises RequestError with all problems.
        """
        rows = np.asarray(vectors, np.float32)
        count = len(rows)
        names: Sequence[str | int] = range(count) if ids is None else ids
        problems = Problems()
        if metric not in ("l2", "inner_product", "cosine"):
            problems.add(f"metric {metric!r} is unknown; there are l2, inner_product, cosine")
        if rows.ndim != 2 or not count or not rows.shape[-1]:
            problems.add(f"vectors have shape {list(rows.shape)}; give (rows, dimension), at least one")
        if count != len(fields) or count != len(names):
            problems.add(f"{count} vectors, {len(fields)} fields, {len(names)} ids; give as many")
        for name, value in (("nprobe", nprobe), ("min_leaf", min_leaf), ("lists", 1 if lists is None else lists)):
            if value < 1:
                problems.add(f"{name} is {value}; give a whole number from 1 on")
        _check_ids(names, {}, problems)
        problems.raise_if_any(RequestError, "batch index")
        cosine = metric == "cosine"
        rows = check_vectors(rows, rows.shape[1], what="batch index", cosine=cosine)
        if centroids is None:
            middle = _cluster(rows, min(lists or round(count**0.5), count), metric, seed)
        else:
            middle = check_vectors(np.asarray(centroids, np.float32), rows.shape[1], what="centroids", cosine=cosine)
        nprobe = min(nprobe, len(middle))
        columns = fields if isinstance(fields, Columns) else Columns(fields)
        past = _workload(workload, templates, middle, metric, nprobe)
        own = nearest_lists(rows, middle, metric, 1)[:, 0]
        tree = grow(columns, own, past, min_leaf=min_leaf, centroid_cuts=centroid_cuts)
        index = cls(middle, tree, metric, nprobe, min_leaf, past.filters)
        index._append(names, rows, columns)
        index.estimate = index._touched_by(past)
        return index

    def __len__(self) -> int:
        return int(np.count_nonzero(self._live))

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.centroids.shape[1])

    @property
    def leaf_sizes(self) -> tuple[int, ...]:
        """Rows of every leaf, in the order of `tree.descriptions`; deleted ones too until the next build."""
        return tuple(np.bincount(self._leaves, minlength=len(self.tree.descriptions)).tolist())

    @property
    def drift(self) -> float:
        """Rows touched per query since the build, of what the build estimated; 1 before the first query."""
        queries, touched = self._observed
        return touched / queries / self.estimate if queries and self.estimate else 1.0

    @property
    def needs_rebuild(self) -> bool:
        """Whether queries touch more than 1.5 times as many rows as at the build: the workload or the data moved."""
        return self.drift > _DRIFTED

    def add(self, vectors: Any, fields: Sequence[Mapping[str, Any] | Document], ids: Sequence[str | int]) -> None:
        """Route rows to their leaves and nearest lists; the tree and the centroids stay.

        Raises RequestError for ids that are there already, and for vectors that do not fit.
        """
        rows = check_vectors(
            np.asarray(vectors, np.float32), self.dimension, what="add", cosine=self.metric == "cosine"
        )
        if not len(rows) == len(fields) == len(ids):
            raise RequestError(f"add: {len(rows)} vectors, {len(fields)} fields, {len(ids)} ids; give as many")
        problems = Problems()
        _check_ids(ids, self._row_of, problems)
        problems.raise_if_any(RequestError, "add")
        self._append(ids, rows, Columns(fields))

    def delete(self, ids: Sequence[str | int]) -> int:
        """Take rows out of every later answer; return how many of the ids there were."""
        found = [self._row_of.pop(own) for own in ids if own in self._row_of]
        self._live[found] = False
        self._known.clear()
        return len(found)

    def rebuild(self, workload: Sequence[HybridQuery], **options: Any) -> BatchIndex:
        """Return a new index of what is not deleted, for another workload; options as in `build`."""
        kept = np.flatnonzero(self._live)
        given: dict[str, Any] = {"metric": self.metric, "nprobe": self.nprobe, "min_leaf": self.min_leaf}
        if "centroids" not in options:
            given["lists"] = len(self.centroids)
        ids = [self._ids[row] for row in kept]
        return BatchIndex.build(
            self._rows[kept], self.columns.take(kept), ids=ids, workload=workload, **(given | options)
        )

    def select(self, where: Filter | None) -> tuple[Selected, bool]:
        """Return what a filter lets through, and whether it had to be evaluated."""
        self._lay_out()
        key = repr(where)
        if key in self._known:
            return self._known[key], False
        lists, leaves = len(self.centroids), len(self.tree.descriptions)
        allowed = (self.columns.matches(where) & self._live)[self.order]
        places = np.flatnonzero(allowed)
        present = np.zeros(lists * leaves, bool)
        present[self._cell[places]] = True
        held = present.reshape(lists, leaves)
        touched = (self._sizes * held).sum(axis=1)
        if len(self._known) >= _REMEMBERED:
            self._known.pop(next(iter(self._known)))
        found = Selected(places, np.searchsorted(places, self._bounds), touched, held)
        self._known[key] = found
        return found, True

    def observe(self, queries: int, touched: int) -> None:
        """Count what queries touched, for `drift`."""
        self._observed[0] += queries
        self._observed[1] += touched

    def ids_of(self, places: Ints) -> list[str | int]:
        """Return the ids at places of the layout."""
        return [self._ids[row] for row in self.order[places].tolist()]

    def _append(self, ids: Sequence[str | int], rows: Floats, columns: Columns) -> None:
        start = len(self._ids)
        self._ids += ids
        self._row_of.update({own: start + row for row, own in enumerate(ids)})
        lists = nearest_lists(rows, self.centroids, self.metric, 1)[:, 0]
        self._rows = np.concatenate([self._rows, rows])
        self._lists = np.concatenate([self._lists, lists])
        self._leaves = np.concatenate([self._leaves, self.tree.route(columns, lists)])
        self._live = np.concatenate([self._live, np.ones(len(rows), bool)])
        self.columns = self.columns.joined(columns) if start else columns
        self._laid_out = False
        self._known.clear()

    def _lay_out(self) -> None:
        if self._laid_out:
            return
        lists, leaves = len(self.centroids), len(self.tree.descriptions)
        rank = np.empty(len(self._ids), np.int64)
        rank[sorted(range(len(self._ids)), key=self._ids.__getitem__)] = np.arange(len(self._ids))
        self.order = np.lexsort((rank, self._leaves, self._lists))
        self.rank = rank[self.order]
        self.vectors = self._rows[self.order]
        squares = np.einsum("ij,ij->i", self.vectors, self.vectors, dtype=np.float64)
        self.squares = squares.astype(np.float32)
        self.longest = float(np.sqrt(squares.max(initial=0)))
        self._cell = (self._lists * leaves + self._leaves)[self.order]
        self._sizes = np.bincount(self._cell, minlength=lists * leaves).reshape(lists, leaves)
        self._bounds = np.concatenate([[0], np.cumsum(self._sizes.sum(axis=1))])
        self._laid_out = True

    def _touched_by(self, past: Workload) -> float:
        """Return the rows a query of the workload touches in the mean; of any query, without a workload."""
        if not past.templates:
            return len(self) * self.nprobe / len(self.centroids)
        found = [self.select(where)[0].touched for where in past.filters]
        total = sum(found[t][list(own)].sum() for t, own in zip(past.templates, past.centroids, strict=True))
        return float(total) / len(past.templates)


def nearest_lists(vectors: Floats, centroids: Floats, metric: Metric, count: int) -> Ints:
    """Return the numbers of the nearest centroids of every vector, nearest first: (n, count)."""
    middle = centroids.astype(np.float64)
    squares = (middle * middle).sum(axis=1) if metric == "l2" else np.zeros(len(middle))
    found = np.empty((len(vectors), count), np.int64)
    for start in range(0, len(vectors), step := max(1, (1 << 22) // len(middle))):
        far = squares - (2.0 if metric == "l2" else 1.0) * (vectors[start : start + step] @ middle.T)
        if count == 1:
            found[start : start + step, 0] = far.argmin(axis=1)
        else:
            found[start : start + step] = np.argsort(far, axis=1, kind="stable")[:, :count]
    return found


def _cluster(rows: Floats, lists: int, metric: Metric, seed: int) -> Floats:
    import faiss

    found = faiss.Kmeans(rows.shape[1], lists, niter=20, seed=seed, spherical=metric != "l2", min_points_per_centroid=1)
    found.train(rows)
    return np.asarray(found.centroids, np.float32)


def _check_ids(ids: Sequence[str | int], known: Mapping[str | int, int], problems: Problems) -> None:
    kinds = {type(own) for own in [*list(known)[:1], *ids]}
    if kinds and kinds not in ({str}, {int}):
        problems.add(f"ids are of the types {', '.join(sorted(kind.__name__ for kind in kinds))}; all str or all int")
    twice = [own for own, count in Counter(ids).items() if count > 1 or own in known]
    if twice:
        problems.add(f"{len(twice)} ids are there twice ({', '.join(map(repr, twice[:5]))}); delete the old rows first")


def _workload(
    queries: Sequence[HybridQuery], templates: Sequence[Where], centroids: Floats, metric: Metric, nprobe: int
) -> Workload:
    filters: dict[str, Filter | None] = {}
    for where in templates:
        parsed = parse_where(where)
        filters[repr(parsed)] = parsed
    places = {key: number for number, key in enumerate(filters)}
    numbers = []
    for query in queries:
        own = None if query.where is None else parse_where(query.where)
        filters.setdefault(repr(own), own)
        numbers.append(places.setdefault(repr(own), len(places)))
    if not queries:
        return Workload(tuple(filters.values()), (), ())
    vectors = check_vectors(
        np.stack([np.asarray(query.vector, np.float32) for query in queries]),
        centroids.shape[1],
        what="workload",
        cosine=metric == "cosine",
    )
    probed = np.sort(nearest_lists(vectors, centroids, metric, nprobe), axis=1)
    return Workload(tuple(filters.values()), tuple(numbers), tuple(tuple(own) for own in probed.tolist()))
