"""Weights of terms, in segments: exact dot products, block by block, any filter before the top k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RequestError
from consilience.stores.protocol import VectorSpace
from consilience.stores.segments import Arrays
from consilience.stores.vectors import Found, merge_found

__all__ = ["Sparse"]

_BLOCK = 1 << 22  # scores held at a time


class Sparse:
    """Vectors of which most values are 0, as rows of a scipy matrix (CSR)."""

    ragged = ("terms", "weights")

    def check(self, values: Any, space: VectorSpace, *, what: str, names: Sequence[str] | None = None) -> Any:
        """Return a CSR array of float32 without stored zeros, terms in order."""
        from scipy.sparse import csr_array, issparse

        if not issparse(values) or values.ndim != 2:
            raise RequestError(
                f"{what}: a {type(values).__name__}; space {space.name!r} takes a sparse matrix of scipy"
            )
        if values.shape[1] != space.dimension:
            raise RequestError(f"{what}: {values.shape[1]} terms; this space has {space.dimension}")
        found = csr_array(values, dtype=np.float32)
        found.sum_duplicates()
        found.eliminate_zeros()
        wrong = np.unique(np.repeat(np.arange(found.shape[0]), np.diff(found.indptr))[~np.isfinite(found.data)])
        if len(wrong):
            who = ", ".join(names[row] if names else f"number {row}" for row in wrong[:5])
            raise RequestError(f"{what}: NaN or infinity in {len(wrong)} vectors ({who}); check the encoder's weights")
        if space.similarity == "cosine":
            lengths = np.sqrt(np.asarray(found.multiply(found).sum(axis=1))).reshape(-1)
            found.data /= np.repeat(np.where(lengths > 0, lengths, 1), np.diff(found.indptr)).astype(np.float32)
        return found

    def arrays(self, values: Any, space: VectorSpace) -> dict[str, NDArray[Any]]:
        """Return the arrays of a segment."""
        return {
            "starts": values.indptr.astype(np.int64),
            "terms": values.indices.astype(np.int32),
            "weights": values.data,
        }

    def search(
        self, segments: Sequence[Arrays], queries: Any, k: int, live: NDArray[np.bool_], space: VectorSpace
    ) -> list[Found]:
        """Return the documents with the largest dot products, of those that share a term with the query."""
        from scipy.sparse import csr_array

        numbers: list[NDArray[np.int64]] = []
        scores: list[NDArray[np.float32]] = []
        asked = queries.T.tocsc()
        step = max(_BLOCK // max(queries.shape[0], 1), 1)
        for segment in segments:
            own = segment["numbers"]
            shape = (len(own), space.dimension)
            held = csr_array((segment["weights"], segment["terms"], segment["starts"]), shape=shape)
            for first in range(0, len(own), step):
                rows = np.arange(first, min(first + step, len(own)))
                rows = rows[live[own[rows]]]
                if not len(rows):
                    continue
                made = (held[rows] @ asked).T.tocsr()
                dense = np.full(made.shape, -np.inf, np.float32)
                dense[np.repeat(np.arange(made.shape[0]), np.diff(made.indptr)), made.indices] = made.data
                best = np.argsort(-dense, axis=1, kind="stable")[:, :k]
                numbers.append(own[rows][best])
                scores.append(np.take_along_axis(dense, best, axis=1))
        if not numbers:
            return [Found(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in range(queries.shape[0])]
        return merge_found(np.concatenate(numbers, axis=1), np.concatenate(scores, axis=1), k)
