"""A graph over the candidates: what is linked to the nearest ones counts too, even where its own vector is far.

Edges are nearest neighbours by cosine and, where known, links of the collection (citations, hyperlinks, relations). A
walk that starts at the candidates nearest to the query gives every candidate a score, which is mixed with relevance.

Sources: personalised PageRank, Haveliwala 2002; its use here is our definition of "Beyond Nearest Neighbors" (2025),
whose formulas were not to be had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import DataError, MissingExtraError, Problems, RecipeError, WorkError
from consilience.retrieval.selection.protocol import Reached
from consilience.retrieval.selection.selecting import unit_vectors

__all__ = ["Overlay", "add_links", "bounded_hops", "hybrid", "neighbour_graph", "overlay", "personalised_pagerank"]

_BLOCK = 1 << 22  # similarities at a time
_ROUNDS = 10_000
Graph: TypeAlias = Any
"""A scipy.sparse.csr_array (n, n), symmetric, with weights above 0; SciPy is imported where it is used."""

Links = Iterable[tuple[int, int] | tuple[int, int, str]]


@dataclass(frozen=True)
class Overlay:
    """Relevance with the graph mixed in; `select(vectors, overlay=...)` takes it.

    relevance (n,): the hybrid score, 0 to 1. graph (n,): the score of the walk. hops (n,): edges from the nearest
    start, -1 without a path. starts: rows where the walk started, nearest first. by_graph (n,): whether more than half
    of the hybrid score comes from the walk.
    """

    relevance: NDArray[np.float64]
    graph: NDArray[np.float64]
    hops: NDArray[np.int64]
    starts: tuple[int, ...]
    by_graph: NDArray[np.bool_]

    def reached(self, index: int) -> Reached:
        """Return what brought a candidate in."""
        return "graph" if self.by_graph[index] else "similarity"

    def hops_of(self, index: int) -> int | None:
        """Return the number of edges from the nearest start; None without a path."""
        return None if self.hops[index] < 0 else int(self.hops[index])


def neighbour_graph(
    vectors: ArrayLike, neighbours: int = 10, *, ids: Sequence[str | int] | None = None, unit: bool = False
) -> Graph:
    """Return the graph of nearest neighbours, a symmetric scipy.sparse.csr_array (n, n) in float64.

    >>> neighbour_graph([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0]], neighbours=1).toarray().round(2)
    array([[0. , 0.8, 0. ],
           [0.8, 0. , 0. ],
           [0. , 0. , 0. ]])

    Every candidate is linked to the `neighbours` others with the largest cosine (equal ones: the lower row), with the
    cosine as weight; an edge of either side counts for both; cosines of 0 and below make no edge. unit: the
    vectors have length 1 already. Exact; time is n * n * d, memory blocks of 4 million similarities.
    """
    sparse = _sparse()
    if neighbours < 1:
        raise RecipeError(f"neighbours: {neighbours!r} of every candidate; use 1 or more")
    units = unit_vectors(vectors, ids, unit=unit)
    count = len(units)
    width = min(neighbours, count - 1)
    if width < 1:
        return sparse.csr_array((count, count), dtype=np.float64)
    near = np.empty((count, width), np.int64)
    weight = np.empty((count, width))
    for start in range(0, count, step := max(1, _BLOCK // count)):
        block = (units[start : start + step] @ units.T).astype(np.float64, copy=False)
        rows = np.arange(len(block))
        block[rows, start + rows] = -np.inf
        near[start : start + step] = _largest(block, width)
        weight[start : start + step] = np.take_along_axis(block, near[start : start + step], axis=1)
    kept = weight.ravel() > 0
    origin = np.repeat(np.arange(count), width)[kept]
    one_way = sparse.csr_array((weight.ravel()[kept], (origin, near.ravel()[kept])), shape=(count, count))
    return _sorted(one_way.maximum(one_way.T))


def add_links(graph: Graph, links: Links, weights: Mapping[str, float] | None = None) -> Graph:
    """Return a graph with links of the collection added, each counting both ways.

    >>> graph = add_links(neighbour_graph([[1.0, 0.0], [0.0, 1.0]]), [(0, 1, "cites")], {"cites": 0.5})
    >>> graph.toarray()
    array([[0. , 0.5],
           [0.5, 0. ]])

    links: (row, row) or (row, row, kind). weights: of every kind, above 0; links without a kind have weight 1. Where
    there is an edge already, the larger weight stays. Raises DataError with every kind of problem.
    """
    count = graph.shape[0]
    problems = Problems()
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    known = weights or {}
    for kind, value in known.items():
        if not 0 < value < np.inf:
            problems.add(f"weight {value!r} of kind {kind!r} is not a number above 0")
    for link in links:
        left, right, kind = (*link, None)[:3]
        if not (0 <= left < count and 0 <= right < count):
            problems.add(f"link {link!r}: the graph has rows 0 to {count - 1}")
        elif kind is not None and kind not in known:
            problems.add(f"link {link!r}: kind {kind!r} has no weight; known: {', '.join(sorted(known)) or 'none'}")
        elif left != right:
            rows += (left, right)
            columns += (right, left)
            values += (1.0 if kind is None else known[kind],) * 2
    problems.raise_if_any(DataError, "links")
    best: dict[tuple[int, int], float] = {}
    for place, value in zip(zip(rows, columns, strict=True), values, strict=True):
        best[place] = max(value, best.get(place, 0.0))
    places = np.array(list(best), np.int64).reshape(-1, 2)
    values_at = np.array(list(best.values()), np.float64)
    added = _sparse().csr_array((values_at, (places[:, 0], places[:, 1])), shape=graph.shape)
    return _sorted(graph.maximum(added))


def personalised_pagerank(
    graph: Graph, restart: ArrayLike, *, damping: float = 0.85, tolerance: float = 1e-10
) -> NDArray[np.float64]:
    """Return how often a walk along edges is at every candidate, (n,), summing to 1.

    >>> graph = neighbour_graph([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0]])
    >>> personalised_pagerank(graph, [1.0, 0.0, 0.0]).round(4)
    array([0.5405, 0.4595, 0.    ])

    damping: the probability to go on, 0 to below 1, to a neighbour in proportion to the weights of edges; else, and
    where there is no edge, the walk starts again at `restart` (n,), in proportion to its values, 0 or more. All 0: all
    0. Power iteration until the sum of changes is below `tolerance`. Raises RecipeError, DataError.
    """
    if not 0 <= damping < 1:
        raise RecipeError(f"damping: {damping!r} is the probability to go on; use a number from 0 to below 1")
    start = _starts_of(restart, graph.shape[0])
    if not start.any():
        return start
    start = start / start.sum()
    degree = graph.sum(axis=1)
    ends = degree == 0
    forward = (graph.multiply((1 / np.where(ends, 1.0, degree))[:, None])).T.tocsr()
    rank = start
    for _ in range(_ROUNDS):
        moved = damping * (forward @ rank)
        moved += (damping * rank[ends].sum() + 1 - damping) * start
        if np.abs(moved - rank).sum() < tolerance:
            return np.asarray(moved)
        rank = moved
    raise WorkError(f"PageRank with damping {damping} is not stable after {_ROUNDS:,} rounds; use a smaller damping")


def bounded_hops(
    graph: Graph, restart: ArrayLike, *, hops: int = 2, decay: float = 0.5
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return a score for what can be reached in a few edges, (n,), and the number of edges to the nearest start.

    >>> graph = add_links(neighbour_graph([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), [(0, 1), (1, 2)])
    >>> bounded_hops(graph, [0.8, 0.0, 0.0], hops=1)
    (array([0.8, 0.4, 0. ]), array([ 0,  1, -1]))

    The score is the best over all walks of at most `hops` edges: the start's value in `restart`, times `decay` and the
    weight of the edge for every step. Candidates out of reach have score 0 and -1 edges.
    """
    if hops < 0:
        raise RecipeError(f"hops: {hops!r} edges; use 0 or more")
    if not 0 < decay <= 1:
        raise RecipeError(f"decay: {decay!r} is the factor of one step; use a number above 0, 1 at most")
    best = _starts_of(restart, graph.shape[0]).copy()
    steps = np.where(best > 0, 0, -1)
    edges = graph.tocoo()
    reached = best
    for hop in range(1, hops + 1):
        forward = np.zeros_like(best)
        np.maximum.at(forward, edges.coords[1], decay * reached[edges.coords[0]] * edges.data)
        steps[(steps < 0) & (forward > 0)] = hop
        best = np.maximum(best, forward)
        reached = forward
    return best, steps


def hybrid(relevance: ArrayLike, graph: ArrayLike, beta: float = 0.5) -> NDArray[np.float64]:
    """Return beta * relevance / max + (1 - beta) * graph score / max, (n,), 0 to 1; a part that is all 0 stays 0.

    >>> hybrid([0.5, 1.0], [0.2, 0.1])
    array([0.75, 0.75])
    """
    if not 0 <= beta <= 1:
        raise RecipeError(f"beta: {beta!r} is the share of relevance; use a number from 0 to 1")
    return beta * _scaled(relevance) + (1 - beta) * _scaled(graph)


def overlay(
    relevance: ArrayLike,
    graph: Graph,
    *,
    beta: float = 0.5,
    starts: int = 3,
    damping: float = 0.85,
    hops: int | None = None,
    decay: float = 0.5,
) -> Overlay:
    """Return relevance mixed with a walk from the most relevant candidates.

    >>> graph = add_links(neighbour_graph([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), [(0, 2)])
    >>> found = overlay([0.9, 0.1, 0.0], graph, starts=1)
    >>> found.relevance.round(3), found.reached(2), found.hops_of(2)
    (array([1.   , 0.056, 0.425]), 'graph', 1)

    relevance (n,): 0 or more, such as the cosine to the query, cut off at 0. The walk starts at the `starts` most
    relevant candidates (equal ones: the lower row), in proportion to their relevance: personalised PageRank with
    `damping`, or with `hops` the bounded form with `decay`. beta: share of relevance in the result.
    """
    values = _starts_of(relevance, graph.shape[0])
    if starts < 1:
        raise RecipeError(f"starts: {starts!r} candidates to start from; use 1 or more")
    nearest = [int(row) for row in np.argsort(-values, kind="stable")[:starts] if values[row] > 0]
    restart = np.zeros(len(values))
    restart[nearest] = values[nearest]
    if hops is None:
        scores = personalised_pagerank(graph, restart, damping=damping)
        steps = _edges_from(graph, nearest)
    else:
        scores, steps = bounded_hops(graph, restart, hops=hops, decay=decay)
    mixed = hybrid(values, scores, beta)
    return Overlay(mixed, scores, steps, tuple(nearest), (1 - beta) * _scaled(scores) > 0.5 * mixed)


def _edges_from(graph: Graph, starts: list[int]) -> NDArray[np.int64]:
    """Return the number of edges from the nearest start, -1 without a path."""
    steps = np.full(graph.shape[0], -1, np.int64)
    front = np.array(starts, np.int64)
    hop = 0
    while len(front):
        steps[front] = hop
        hop += 1
        near = np.unique(np.concatenate([graph.indices[graph.indptr[row] : graph.indptr[row + 1]] for row in front]))
        front = near[steps[near] < 0]
    return steps


def _starts_of(values: ArrayLike, count: int) -> NDArray[np.float64]:
    column = np.asarray(values, np.float64)
    if column.shape != (count,):
        raise DataError(f"there are values of shape {column.shape} for a graph of {count} candidates; give ({count},)")
    if not (np.isfinite(column).all() and (column >= 0).all()):
        bad = int(np.flatnonzero(~(np.isfinite(column) & (column >= 0)))[0])
        raise DataError(f"the value of candidate {bad} is {column[bad]:g}; give numbers from 0 on")
    return column


def _scaled(values: ArrayLike) -> NDArray[np.float64]:
    column = np.asarray(values, np.float64)
    largest = column.max(initial=0.0)
    return column / largest if largest > 0 else np.zeros_like(column)


def _largest(block: NDArray[np.float64], width: int) -> NDArray[np.int64]:
    """Return the columns of the `width` largest values of every row; of equal values the lower columns."""
    least = np.partition(block, block.shape[1] - width, axis=1)[:, -width]
    above = block > least[:, None]
    level = block == least[:, None]
    room = width - above.sum(axis=1)
    kept = above | (level & (np.cumsum(level, axis=1) <= room[:, None]))
    return np.nonzero(kept)[1].reshape(len(block), width)


def _sorted(graph: Graph) -> Graph:
    found = graph.tocsr()
    found.sort_indices()
    return found


def _sparse() -> Any:
    try:
        from scipy import sparse
    except ImportError:
        raise MissingExtraError("scipy", "search") from None
    return sparse
