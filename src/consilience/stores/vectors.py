"""Vectors in segments mapped from disk: exact search, block by block, with any filter applied before the top k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RequestError
from consilience.stores.coded import coded
from consilience.stores.segments import Arrays

__all__ = ["Found", "check_dense", "check_vectors", "merge_found", "rows_of", "search_vectors"]

_BLOCK = 1 << 24  # bytes of vectors looked at in one go: they stay in the processor's cache for a batch of queries
_BATCH = 8  # queries from which on one product of matrices is faster than faiss, 2.3 times with 32
_MOST = 512  # queries whose products with a block are held at once
_GATHER = 0.3  # with fewer rows allowed than this share, they are copied together first
_RARE = 0.05  # with fewer rows allowed than this share, the smaller copy of all is not worth it

Best = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True)
class Found:
    """What a store found for one query: numbers of documents and scores, best first; ties by number.

    coverage: of a search by words, the share of the query's words that the best hit has, rare words counting more, 0 to
    1; None where there is no such thing.
    """

    numbers: NDArray[np.int64]
    scores: NDArray[np.float32]
    coverage: float | None = None

    def __len__(self) -> int:
        return len(self.numbers)


def check_vectors(
    vectors: NDArray[np.float32], dimension: int, *, what: str, names: Sequence[str] | None = None, cosine: bool
) -> NDArray[np.float32]:
    """Return vectors as float32 (rows, dimension), of length 1 with `cosine` (a vector of zeros stays).

    Raises RequestError for another dimension, and naming what has NaN or infinite vectors.
    """
    found = np.ascontiguousarray(vectors, np.float32)
    if found.ndim != 2 or found.shape[1] != dimension:
        raise RequestError(f"{what}: vectors of shape {list(found.shape)}; this space has {dimension} dimensions")
    lengths = np.sqrt(np.einsum("ij,ij->i", found, found))
    if not np.isfinite(lengths).all():
        rows = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(rows):
            who = ", ".join(names[row] if names else f"number {row}" for row in rows[:5])
            raise RequestError(f"{what}: NaN or infinity in {len(rows)} vectors ({who}); check the encoder's weights")
        lengths = np.linalg.norm(found.astype(np.float64), axis=1).astype(np.float32)  # squares were too large
    if not cosine:
        return found
    lengths[lengths == 0] = 1
    return np.asarray(found / lengths[:, None], np.float32)


def search_vectors(
    segments: Sequence[Arrays], queries: NDArray[np.float32], k: int, live: NDArray[np.bool_]
) -> list[Found]:
    """Return the `k` documents with the largest dot product for every query, of those that are `live`.

    >>> segment = {"numbers": np.array([0, 1, 2]), "vectors": np.eye(3, dtype=np.float32)}
    >>> live = np.array([True, False, True])
    >>> search_vectors([segment], np.array([[0.1, 0.9, 0.5]], np.float32), 2, live)[0].numbers
    array([2, 0])

    queries: (queries, dimension). live: bool by number of document. Fewer than k where fewer are live.
    """
    numbers: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    everything = bool(live.all())
    for segment in segments:
        own, vectors = segment["numbers"], segment["vectors"]
        allowed = None if everything else live[own]
        count = len(own) if allowed is None else int(np.count_nonzero(allowed))
        if not count:
            continue
        if count == len(own):
            allowed = None
        places, values = _by_copy(queries, vectors, k, allowed, count) or _blocks(queries, vectors, k, allowed, count)
        numbers.append(own[places])
        scores.append(values)
    if not numbers:
        return [Found(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    return merge_found(_joined(numbers), _joined(scores), k)


def check_dense(name: str, kind: str) -> None:
    """Report a space whose documents have no vector each. Raises RequestError."""
    if kind != "dense":
        raise RequestError(f"space {name!r} is of kind {kind!r}; its documents have no single vector")


def rows_of(
    segments: Sequence[Arrays], name: str, kind: str, dimension: int, numbers: Sequence[int]
) -> NDArray[np.float32]:
    """Return the vectors of documents by number, (numbers, dimension); 0 for those that are in no segment."""
    check_dense(name, kind)
    wanted = np.array(numbers, np.int64)
    found = np.zeros((len(wanted), dimension), np.float32)
    for segment in segments:
        own = segment["numbers"]
        order = np.argsort(own, kind="stable") if len(own) > 1 and (np.diff(own) < 0).any() else np.arange(len(own))
        places = np.searchsorted(own, wanted, sorter=order)
        inside = places < len(own)
        rows = order[places[inside]]
        right = own[rows] == wanted[inside]
        found[np.flatnonzero(inside)[right]] = segment["vectors"][rows[right]]
    return found


def merge_found(numbers: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> list[Found]:
    """Return the best `k` of several lists side by side, (queries, any); scores of minus infinity are no finds."""
    found = []
    for own, values in zip(numbers, scores, strict=True):
        if len(own) > k or not (values[1:] < values[:-1]).all():  # else it is in order as it is
            order = np.lexsort((own, -values))[:k]
            own, values = own[order], values[order]
        if len(values) and values[-1] == -np.inf:
            there = values > -np.inf
            own, values = own[there], values[there]
        found.append(Found(own, values))
    return found


def _by_copy(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, count: int
) -> Best | None:
    """Return what `_blocks` does, by a smaller copy of the vectors; None where there is none, or it is not certain."""
    if len(queries) >= _BATCH or not 0 < k < count or count < _RARE * len(vectors):
        return None
    copy = coded(vectors)
    if copy is None or not copy.useful():
        return None
    found = [copy.search(query[None], k, partial(_scores, vectors, query[None]), allowed) for query in queries]
    certain = [one for one in found if one is not None]
    if len(certain) < len(found):
        return None
    return np.stack([places for places, _ in certain]), np.stack([scores for _, scores in certain])


def _scores(vectors: NDArray[np.float32], query: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the scores of some rows, to the bit those of a search through all."""
    import faiss

    values, order = faiss.knn(query, vectors[places], len(places), metric=faiss.METRIC_INNER_PRODUCT)
    scores = np.empty(len(places), np.float32)
    scores[order[0]] = values[0]
    return scores


def _blocks(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, count: int
) -> Best:
    """Return places and scores of the best k of all blocks, unsorted between blocks; count: of rows that are allowed.

    A few queries by faiss, many by a product of matrices: the scores of the two may differ in the last bit, but no
    filter changes them.
    """
    if len(queries) > _MOST:
        steps = range(0, len(queries), _MOST)
        parts = [_blocks(queries[start : start + _MOST], vectors, k, allowed, count) for start in steps]
        return np.concatenate([one for one, _ in parts]), np.concatenate([one for _, one in parts])
    few, width = len(queries) < _BATCH, 4 * vectors.shape[1]
    step = max(_BLOCK // width, 1024)
    places, scores = [], []
    for rows in _rows(allowed, count, len(vectors), step, copied=few or count < _GATHER * len(vectors)):
        block = np.ascontiguousarray(vectors[rows], np.float32)
        if not len(block):
            continue
        masked = allowed is not None and isinstance(rows, slice)
        found, values = _best(queries, block, k, allowed[rows] if masked else None)  # type: ignore[index]
        if isinstance(rows, slice):
            places.append(found + rows.start if rows.start else found)
        else:
            places.append(rows[found])
        scores.append(values)
    return _joined(places), _joined(scores)


def _rows(
    allowed: NDArray[np.bool_] | None, count: int, length: int, step: int, *, copied: bool
) -> Iterator[slice | NDArray[np.int64]]:
    """Yield the rows of each block: all of them, or the numbers of those that are allowed, to be copied together."""
    if allowed is None or not copied:
        yield from (slice(start, start + step) for start in range(0, length, step))
    elif count <= step:
        yield np.flatnonzero(allowed)
    else:
        yield from (np.flatnonzero(allowed[start : start + step]) + start for start in range(0, length, step))


def _best(queries: NDArray[np.float32], block: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Best:
    """Return places in a block and scores of the best k, in no order."""
    import faiss

    count = min(k, len(block))
    if allowed is None and len(queries) < _BATCH:
        values, found = faiss.knn(queries, block, count, metric=faiss.METRIC_INNER_PRODUCT)
        return found, values
    every = queries @ block.T
    if allowed is not None:
        every[:, ~allowed] = -np.inf
    last = len(block) - count
    found = np.argpartition(every, last, axis=1)[:, last:] if last else _all_places(every)
    return found, np.take_along_axis(every, found, axis=1)


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Return lists side by side."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _all_places(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
