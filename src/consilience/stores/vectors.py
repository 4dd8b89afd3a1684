"""Vectors in segments mapped from disk: exact search, block by block, with any filter applied before the top k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RequestError
from consilience.stores.segments import Arrays

__all__ = ["Found", "check_dense", "check_vectors", "merge_found", "rows_of", "search_vectors"]

_BLOCK = 1 << 24  # bytes of vectors looked at in one go: they stay in the processor's cache for a batch of queries
_BATCH = 8  # queries from which on one product of matrices is faster than faiss, 2.3 times with 32
_MOST = 512  # queries whose products with a block are held at once
_GATHER = 0.3  # with fewer rows allowed than this share, they are copied together first


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
    if not np.isfinite(found.sum(dtype=np.float64)):
        rows = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(rows):
            who = ", ".join(names[row] if names else f"number {row}" for row in rows[:5])
            raise RequestError(f"{what}: NaN or infinity in {len(rows)} vectors ({who}); check the encoder's weights")
    if not cosine:
        return found
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(lengths > 0, lengths, 1), np.float32)


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
    for segment in segments:
        own = segment["numbers"]
        allowed = live[own]
        count = int(np.count_nonzero(allowed))
        if not count:
            continue
        if count < _GATHER * len(own):
            rows = np.flatnonzero(allowed)
            places, values = _blocks(queries, segment["vectors"][rows], k, None)
            places = rows[places]
        else:
            places, values = _blocks(queries, segment["vectors"], k, None if count == len(own) else allowed)
        numbers.append(own[places])
        scores.append(values)
    if not numbers:
        return [Found(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    return merge_found(np.concatenate(numbers, axis=1), np.concatenate(scores, axis=1), k)


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
        order = np.lexsort((own, -values))[:k]
        order = order[values[order] > -np.inf]
        found.append(Found(own[order], values[order]))
    return found


def _blocks(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return places and scores of the best k of all blocks, unsorted between blocks."""
    import faiss

    if len(queries) > _MOST:
        parts = [
            _blocks(queries[start : start + _MOST], vectors, k, allowed) for start in range(0, len(queries), _MOST)
        ]
        return np.concatenate([one for one, _ in parts]), np.concatenate([one for _, one in parts])
    step = max(_BLOCK // (4 * vectors.shape[1]), 1024)
    places, scores = [], []
    for start in range(0, len(vectors), step):
        block = np.ascontiguousarray(vectors[start : start + step], np.float32)
        count = min(k, len(block))
        if allowed is None and len(queries) < _BATCH:
            values, found = faiss.knn(queries, block, count, metric=faiss.METRIC_INNER_PRODUCT)
        else:
            every = queries @ block.T
            if allowed is not None:
                every[:, ~allowed[start : start + step]] = -np.inf
            last = len(block) - count
            found = np.argpartition(every, last, axis=1)[:, last:] if last else _all_places(every)
            values = np.take_along_axis(every, found, axis=1)
        places.append(found.astype(np.int64) + start)
        scores.append(values)
    return np.concatenate(places, axis=1), np.concatenate(scores, axis=1)


def _all_places(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
