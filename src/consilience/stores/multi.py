"""A vector for every token, in segments: exact late interaction, block by block, any filter before the top k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RequestError
from consilience.models.token_vectors import TokenVectors
from consilience.stores.protocol import VectorSpace
from consilience.stores.segments import Arrays
from consilience.stores.vectors import Found, check_vectors, merge_found

__all__ = ["Multi"]

_BLOCK = 1 << 22  # products held at a time (16 MB)
_LEVELS = 127


class Multi:
    """Token vectors in float32, or in 8 bits with a scale each."""

    ragged = ("tokens", "scales")

    def check(self, values: Any, space: VectorSpace, *, what: str, names: Sequence[str] | None = None) -> TokenVectors:
        """Return token vectors, of length 1 where the space compares by the cosine."""
        if not isinstance(values, TokenVectors):
            raise RequestError(f"{what}: a {type(values).__name__}; space {space.name!r} takes TokenVectors")
        cosine = space.similarity == "cosine"
        found = check_vectors(values.values, space.dimension, what=f"{what}, tokens", cosine=cosine)
        return TokenVectors(found, values.starts)

    def arrays(self, values: Any, space: VectorSpace) -> dict[str, NDArray[Any]]:
        """Return the arrays of a segment."""
        if space.precision == "float32":
            return {"starts": values.starts, "tokens": values.values}
        scales = np.abs(values.values).max(axis=1, initial=0).astype(np.float32) / _LEVELS
        levels = np.rint(values.values / np.where(scales > 0, scales, 1)[:, None])
        return {"starts": values.starts, "tokens": levels.astype(np.int8), "scales": scales}

    def search(
        self, segments: Sequence[Arrays], queries: Any, k: int, live: NDArray[np.bool_], space: VectorSpace
    ) -> list[Found]:
        """Return the documents with the largest sums, over the query's tokens, of the largest dot product.

        Documents and queries without tokens find nothing.
        """
        numbers: list[NDArray[np.int64]] = []
        scores: list[NDArray[np.float32]] = []
        asked = np.flatnonzero(queries.counts)
        for segment in segments:
            own = segment["numbers"]
            for rows in _blocks(segment, np.flatnonzero(live[own]), max(len(queries.values), 1)):
                made = np.full((len(queries), len(rows)), -np.inf, np.float32)
                if len(asked):
                    made[asked] = _scores(segment, rows, queries, asked)
                best = np.argsort(-made, axis=1, kind="stable")[:, :k]
                numbers.append(own[rows][best])
                scores.append(np.take_along_axis(made, best, axis=1))
        if not numbers:
            return [Found(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in range(len(queries))]
        return merge_found(np.concatenate(numbers, axis=1), np.concatenate(scores, axis=1), k)


def _blocks(segment: Arrays, rows: NDArray[np.int64], width: int) -> Iterator[NDArray[np.int64]]:
    """Yield rows of documents that have tokens, as many as a block of products holds."""
    starts = segment["starts"]
    counts = starts[rows + 1] - starts[rows]
    rows, counts = rows[counts > 0], counts[counts > 0]
    ends = np.cumsum(counts)
    first = 0
    while first < len(rows):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + max(_BLOCK // width, 1), side="right")), first + 1)
        yield rows[first:last]
        first = last


def _scores(
    segment: Arrays, rows: NDArray[np.int64], queries: TokenVectors, asked: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the scores of documents with tokens, (queries that are asked, rows)."""
    starts = segment["starts"]
    counts = starts[rows + 1] - starts[rows]
    bounds = np.concatenate([[0], np.cumsum(counts)[:-1]])
    if rows[-1] - rows[0] + 1 == len(rows):
        places: Any = slice(int(starts[rows[0]]), int(starts[rows[-1] + 1]))
    else:
        places = np.repeat(starts[rows] - bounds, counts) + np.arange(counts.sum())
    tokens = np.asarray(segment["tokens"][places], np.float32)
    products = tokens @ queries.values.T
    if "scales" in segment:
        products *= np.asarray(segment["scales"][places])[:, None]
    best = np.maximum.reduceat(products, bounds, axis=0)  # (rows, tokens of all queries)
    return np.add.reduceat(best, queries.starts[asked], axis=1).T
