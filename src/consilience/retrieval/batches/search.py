"""Searches many hybrid queries at once: one matrix product for all queries that share a filter and a posting list.

Products are made in float32 and only choose candidates, a few more than asked for. Candidates are measured again in
float64 by one formula, so that an answer does not depend on how queries were grouped, and equal distances are equal.
Where the bound of rounding leaves open whether a candidate was missed, the query is measured in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from consilience.errors import Problems, RequestError
from consilience.retrieval.batches.index import BatchIndex, HybridQuery, Selected, nearest_lists
from consilience.stores.vectors import check_vectors
from consilience.stores.where import Filter, Where, parse_where

__all__ = ["BatchResult", "Group", "Hits", "group_queries", "measure_recall", "search_batch", "search_one"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
_MORE = 4  # candidates beyond k
_IN_CACHE = 1 << 17  # float64 values of candidates that are measured at a time
_BLOCK = 1 << 23  # candidates of all queries that are held at a time


@dataclass(frozen=True)
class Hits:
    """What one query found, nearest first, equal distances by id; fewer than k where fewer match.

    distances: squared (l2), 1 - cosine, or the negative inner product. tuples_touched: rows in the leaves of the probed
    lists that hold a match; distances_computed: vectors compared with; leaves_visited: of the tree.
    """

    ids: tuple[str | int, ...]
    distances: Doubles
    tuples_touched: int
    distances_computed: int
    leaves_visited: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class BatchResult:
    """The answers in the order of the queries, and what the batch cost.

    groups: matrix products; filters_evaluated: bitmaps that were not known; measured_in_full: queries for which
    rounding had left something open.
    """

    hits: tuple[Hits, ...]
    groups: int
    filters_evaluated: int
    measured_in_full: int

    @property
    def tuples_touched(self) -> int:
        """Rows touched, over all queries."""
        return sum(own.tuples_touched for own in self.hits)

    @property
    def distances_computed(self) -> int:
        """Distances, over all queries."""
        return sum(own.distances_computed for own in self.hits)

    @property
    def leaves_visited(self) -> int:
        """Leaves, over all queries."""
        return sum(own.leaves_visited for own in self.hits)


@dataclass(frozen=True)
class Group:
    """Queries with one filter that probe one list: their numbers, ascending, and the place of the list in each."""

    template: int
    list: int
    queries: Ints
    slots: Ints


@dataclass(frozen=True)
class _Plan:
    vectors: Floats
    templates: Ints
    selected: list[Selected]
    probes: list[Ints]
    limits: Ints
    evaluated: int


def search_batch(index: BatchIndex, queries: Sequence[HybridQuery], *, exact: bool = False) -> BatchResult:
    """Answer queries together.

    >>> vectors = np.array([[0, 0], [1, 0], [0, 2], [3, 3]], np.float32)
    >>> index = BatchIndex.build(vectors, [{"even": row % 2 == 0} for row in range(4)], lists=2)
    >>> found = search_batch(index, [HybridQuery([0, 0], "even = true", k=3), HybridQuery([3, 2], k=1)], exact=True)
    >>> [hits.ids for hits in found.hits]
    [(0, 2), (3,)]

    exact: every list is probed, whatever the queries say; the answer is then that of a search through all rows. Raises
    RequestError with the problems of all queries: their vector, filter, k, nprobe or metric.
    """
    plan = _plan(index, queries, exact)
    width = int(plan.limits.max(initial=0)) + _MORE
    widest = max((len(own) for own in plan.probes), default=1)
    step = max(1, _BLOCK // max(width * widest, 1))
    hits: list[Hits] = []
    groups = full = 0
    for start in range(0, len(queries), step):
        block = range(start, min(start + step, len(queries)))
        places, keys, made = _candidates(index, plan, block, width, widest)
        groups += made
        found, open_ = _measured(index, plan, block, places, keys)
        full += open_
        hits += found
    index.observe(len(hits), sum(own.tuples_touched for own in hits))
    return BatchResult(tuple(hits), groups, plan.evaluated, full)


def search_one(index: BatchIndex, query: HybridQuery, *, exact: bool = False) -> Hits:
    """Answer one query, with the same result as in a batch.

    >>> index = BatchIndex.build(np.eye(3), [{}, {}, {}], metric="cosine")
    >>> search_one(index, HybridQuery([1, 0.1, 0], k=2), exact=True).ids
    (0, 1)
    """
    plan = _plan(index, [query], exact)
    selected, vector, limit = plan.selected[0], plan.vectors[0], int(plan.limits[0])
    places = _places(selected, plan.probes[0])
    keys = index.vectors[places] @ vector
    keys = index.squares[places] - 2 * keys if index.metric == "l2" else -keys
    width = limit + _MORE
    if len(places) > width:
        chosen = np.argpartition(keys, width - 1)[:width]
        places, keys = places[chosen], keys[chosen]
    row = np.full((1, width), -1, np.int64), np.full((1, width), np.inf, np.float32)
    row[0][0, : len(places)], row[1][0, : len(places)] = places, keys
    hits = _measured(index, plan, range(1), *row)[0][0]
    index.observe(1, hits.tuples_touched)
    return hits


def measure_recall(index: BatchIndex, queries: Sequence[HybridQuery]) -> float:
    """Return the share of the exact answers that the index finds, and keep it as `index.recall`.

    1 where there is nothing to find.
    """
    ours, exact = search_batch(index, queries), search_batch(index, queries, exact=True)
    pairs = [(set(own.ids), set(best.ids)) for own, best in zip(ours.hits, exact.hits, strict=True)]
    wanted = sum(len(best) for _, best in pairs)
    index.recall = sum(len(own & best) for own, best in pairs) / wanted if wanted else 1.0
    return index.recall


def group_queries(templates: Sequence[int] | Ints, probes: Sequence[Sequence[int] | Ints]) -> list[Group]:
    """Return the groups of queries that share a filter and a list, by filter and list.

    >>> [(g.template, g.list, g.queries.tolist()) for g in group_queries([0, 1, 0], [[2, 4], [2], [4]])]
    [(0, 2, [0]), (0, 4, [0, 2]), (1, 2, [1])]

    templates: the number of the filter, per query. probes: the lists, per query.
    """
    counts = np.array([len(own) for own in probes], np.int64)
    if not counts.sum():
        return []
    lists = np.concatenate([np.asarray(own, np.int64) for own in probes])
    queries = np.repeat(np.arange(len(probes)), counts)
    slots = np.arange(len(lists)) - np.repeat(np.cumsum(counts) - counts, counts)
    own = np.asarray(templates, np.int64)[queries]
    order = np.lexsort((queries, lists, own))
    own, lists, queries, slots = own[order], lists[order], queries[order], slots[order]
    changed = (own[1:] != own[:-1]) | (lists[1:] != lists[:-1])
    edges = [0, *(np.flatnonzero(changed) + 1).tolist(), len(order)]
    return [Group(int(own[a]), int(lists[a]), queries[a:b], slots[a:b]) for a, b in pairwise(edges)]


def _plan(index: BatchIndex, queries: Sequence[HybridQuery], exact: bool) -> _Plan:
    problems = Problems()
    filters: dict[str, tuple[int, Filter | None]] = {}
    read: dict[int, int] = {}  # a filter object that several queries share is read once
    templates = np.zeros(len(queries), np.int64)
    lists = len(index.centroids)
    for number, query in enumerate(queries):
        if query.metric not in (None, index.metric):
            problems.add(f"query {number}: metric {query.metric!r}; this index has {index.metric!r}")
        for name, value in (("k", query.k), ("nprobe", query.nprobe)):
            if value is not None and ((type(value) is not int and not isinstance(value, Integral)) or value < 1):
                problems.add(f"query {number}: {name} is {value}; give a whole number from 1 on")
        if np.shape(query.vector) != (index.dimension,):
            shape = list(np.shape(query.vector))
            problems.add(f"query {number}: a vector of shape {shape}; this index has {index.dimension} dimensions")
        if id(query.where) not in read:
            try:
                own = _read(query.where)
            except RequestError as error:
                problems.add(f"query {number}: {error}")
                continue
            read[id(query.where)] = filters.setdefault(repr(own), (len(filters), own))[0]
        templates[number] = read[id(query.where)]
    problems.raise_if_any(RequestError, "batch search")
    empty = np.empty((0, index.dimension), np.float32)
    vectors = np.array([query.vector for query in queries], np.float32) if queries else empty
    vectors = check_vectors(vectors, index.dimension, what="batch search", cosine=index.metric == "cosine")
    if exact:
        probes = [np.arange(lists)] * len(queries)
    else:
        counts = [min(query.nprobe or index.nprobe, lists) for query in queries]
        nearest = nearest_lists(vectors, index.centroids, index.metric, max(counts, default=1))
        probes = [own[:count] for own, count in zip(nearest, counts, strict=True)]
    found = [index.select(own) for _, own in filters.values()]
    limits = np.minimum(np.array([query.k for query in queries], np.int64), len(index))
    return _Plan(vectors, templates, [own for own, _ in found], probes, limits, sum(new for _, new in found))


def _read(where: Where | None) -> Filter | None:
    return None if where is None else _read_text(where) if isinstance(where, str) else parse_where(where)


@lru_cache(maxsize=256)
def _read_text(where: str) -> Filter:
    return parse_where(where)


def _candidates(index: BatchIndex, plan: _Plan, block: range, width: int, widest: int) -> tuple[Ints, Floats, int]:
    """Return places and keys, smallest `width` per query in no order, and the number of matrix products."""
    templates = plan.templates[block.start : block.stop]
    probes = plan.probes[block.start : block.stop]
    vectors = plan.vectors[block.start : block.stop] * np.float32(-2 if index.metric == "l2" else -1)
    places = np.full((len(block), widest, width), -1, np.int64)
    keys = np.full((len(block), widest, width), np.inf, np.float32)
    made = 0
    for group in group_queries(templates, probes):
        selected = plan.selected[group.template]
        own = selected.places[selected.starts[group.list] : selected.starts[group.list + 1]]
        if not len(own):
            continue
        made += 1
        in_one_run = own[-1] - own[0] + 1 == len(own)
        rows: slice | Ints = slice(own[0], own[-1] + 1) if in_one_run else own
        every = vectors[group.queries] @ index.vectors[rows].T
        if index.metric == "l2":
            every += index.squares[rows]
        if len(own) > width:
            chosen = np.argpartition(every, width - 1, axis=1)[:, :width]
            keys[group.queries, group.slots] = np.take_along_axis(every, chosen, axis=1)
            places[group.queries, group.slots] = own[chosen]
        else:
            keys[group.queries, group.slots, : len(own)] = every
            places[group.queries, group.slots, : len(own)] = own
    flat_places, flat_keys = places.reshape(len(block), -1), keys.reshape(len(block), -1)
    if widest > 1:
        chosen = np.argpartition(flat_keys, width - 1, axis=1)[:, :width]
        flat_places = np.take_along_axis(flat_places, chosen, axis=1)
        flat_keys = np.take_along_axis(flat_keys, chosen, axis=1)
    return flat_places, flat_keys, made


def _measured(index: BatchIndex, plan: _Plan, block: range, places: Ints, keys: Floats) -> tuple[list[Hits], int]:
    """Measure candidates in float64 and put them in order; return the answers, and how many were done in full."""
    numbers = np.arange(block.start, block.stop)
    vectors = plan.vectors[numbers].astype(np.float64)
    step = max(1, _IN_CACHE // (places.shape[1] * index.dimension))
    distances = np.concatenate(
        [
            _distances(index, places[start : start + step], vectors[start : start + step, None])
            for start in range(0, len(places), step)
        ]
    )
    distances[places < 0] = np.inf
    order = np.lexsort((index.rank[places], distances), axis=-1)
    distances = np.take_along_axis(distances, order, axis=1)
    ordered = np.take_along_axis(places, order, axis=1)
    limits = plan.limits[numbers]
    open_ = _left_open(index, vectors, keys, distances, limits)
    for row in np.flatnonzero(open_).tolist():
        own = _places(plan.selected[plan.templates[numbers[row]]], plan.probes[numbers[row]])
        values = _distances(index, own, vectors[row])
        best = np.lexsort((index.rank[own], values))[: limits[row]]
        ordered[row, : len(best)], distances[row, : len(best)] = own[best], values[best]
    found = np.minimum((distances < np.inf).sum(axis=1), limits).tolist()
    ids = index.ids_of(ordered.ravel())
    width = ordered.shape[1]
    hits = [
        Hits(tuple(ids[row * width : row * width + count]), distances[row, :count], *told)
        for row, (count, told) in enumerate(zip(found, _counters(plan, block), strict=True))
    ]
    return hits, int(np.count_nonzero(open_))


def _counters(plan: _Plan, block: range) -> list[tuple[int, int, int]]:
    """Return per query the rows touched, the distances and the leaves visited."""
    probes = plan.probes[block.start : block.stop]
    counts = np.array([len(own) for own in probes], np.int64)
    lists, templates = np.concatenate(probes), np.repeat(plan.templates[block.start : block.stop], counts)
    starts = np.cumsum(counts) - counts
    touched = np.stack([own.touched for own in plan.selected])[templates, lists]
    let_through = np.stack([np.diff(own.starts) for own in plan.selected])[templates, lists]
    leaves = np.stack([own.leaves for own in plan.selected])[templates, lists]
    visited = np.logical_or.reduceat(leaves, starts, axis=0).sum(axis=1)
    summed = (np.add.reduceat(own, starts).tolist() for own in (touched, let_through))
    return list(zip(*summed, visited.tolist(), strict=True))


def _left_open(
    index: BatchIndex, vectors: Doubles, keys: Floats, distances: Doubles, limits: Ints
) -> NDArray[np.bool_]:
    """Return the queries whose k-th distance is not certainly below that of everything that was left out.

    What was left out has a key in float32 of at least the largest that was kept. A dot product of d terms is within
    d * 2**-24 * |x| * |q| of its value (Higham, Accuracy and Stability, 3.1); twice that leaves room for the squares.
    """
    last = keys.max(axis=1).astype(np.float64)
    lengths = np.sqrt((vectors * vectors).sum(axis=1))
    bound = 2.0**-23 * (index.dimension + 8) * (lengths + index.longest) ** 2
    shift = lengths**2 if index.metric == "l2" else 1.0 if index.metric == "cosine" else 0.0
    kth = distances[np.arange(len(limits)), np.maximum(limits - 1, 0)]
    certain: NDArray[np.bool_] = last + shift - bound > kth
    left_open: NDArray[np.bool_] = ~certain & np.isfinite(last) & (limits > 0)
    return left_open


def _distances(index: BatchIndex, places: Ints, vectors: Doubles) -> Doubles:
    rows = index.vectors[places].astype(np.float64)
    if index.metric == "l2":
        rows -= vectors
        rows *= rows
        return np.asarray(rows.sum(axis=-1))
    rows *= vectors
    dots = rows.sum(axis=-1)
    return np.asarray(1 - dots if index.metric == "cosine" else -dots)


def _places(selected: Selected, probes: Ints) -> Ints:
    parts = [selected.places[selected.starts[own] : selected.starts[own + 1]] for own in probes]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
