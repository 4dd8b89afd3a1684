"""Exact nearest neighbours in float32, block by block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from consilience.data.metrics import rank
from consilience.errors import WorkError

__all__ = ["normalised", "search"]

_BLOCK = 1 << 23  # scores held at a time (32 MB)


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors of length 1 (a vector of zeros stays); float32 (texts, dimension)."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


def search(
    queries: NDArray[np.float32], documents: NDArray[np.float32], k: int, *, similarity: str = "cosine"
) -> NDArray[np.int64]:
    """Return the positions of the `k` most similar documents of every query, best first; ties keep document order.

    >>> documents = np.eye(3, dtype=np.float32)
    >>> search(np.array([[0.1, 0.9, 0.5]], np.float32), documents, 2)
    array([[1, 2]])

    Raises WorkError when a vector is NaN or infinite.
    """
    for vectors, what in ((queries, "query"), (documents, "document")):
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise WorkError(f"the vector of {what} {row} is NaN or infinite; check the weights of the model")
    if similarity == "cosine":
        queries, documents = normalised(queries), normalised(documents)
    step = max(_BLOCK // max(len(documents), 1), 1)
    blocks = [rank(queries[start : start + step] @ documents.T, k) for start in range(0, len(queries), step)]
    return np.concatenate(blocks)
