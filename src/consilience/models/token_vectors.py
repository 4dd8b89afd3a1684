"""A vector for every token of a text, and the late-interaction similarity of two texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RequestError

__all__ = ["TokenVectors", "max_similarity"]

_BLOCK = 1 << 24  # products held at a time


@dataclass(frozen=True)
class TokenVectors:
    """The token vectors of texts, one text after the other.

    >>> vectors = TokenVectors.from_list([np.eye(2, dtype=np.float32), np.ones((1, 2), np.float32)])
    >>> len(vectors), vectors.counts.tolist(), vectors.text(1).tolist()
    (2, [2, 1], [[1.0, 1.0]])

    values: float32 (tokens, dimension). starts: int64 (texts + 1), where each text begins; a text may have no tokens.
    """

    values: NDArray[np.float32]
    starts: NDArray[np.int64]

    @classmethod
    def from_list(cls, texts: Sequence[NDArray[np.float32]], *, dimension: int | None = None) -> TokenVectors:
        """Join the (tokens, dimension) arrays of texts. dimension: needed where there is no text."""
        starts = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(one) for one in texts], out=starts[1:])
        if not texts:
            return cls(np.empty((0, dimension or 0), np.float32), starts)
        return cls(np.concatenate(texts).astype(np.float32, copy=False), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of tokens of each text."""
        return np.diff(self.starts)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.values.shape[1])

    def text(self, index: int) -> NDArray[np.float32]:
        """Return the token vectors of one text."""
        return self.values[self.starts[index] : self.starts[index + 1]]

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> TokenVectors:
        """Return some texts, in the order of `rows`."""
        return TokenVectors.from_list([self.text(int(row)) for row in rows], dimension=self.dimension)


def max_similarity(query: NDArray[np.float32], documents: TokenVectors) -> NDArray[np.float32]:
    """Return the late-interaction score of one query with every document: for each query token the largest product.

    >>> documents = TokenVectors.from_list([np.eye(2, dtype=np.float32), np.array([[0.0, 1.0]], np.float32)])
    >>> max_similarity(np.array([[1.0, 0.0], [0.0, 2.0]], np.float32), documents).tolist()
    [3.0, 2.0]

    query: (tokens, dimension). Returns float32 (documents,); minus infinity for documents without tokens. Raises
    RequestError for another dimension.

    Source: Khattab and Zaharia 2020, ColBERT (MaxSim).
    """
    if query.ndim != 2 or query.shape[1] != documents.dimension:
        raise RequestError(f"query of shape {list(query.shape)}; documents have {documents.dimension} dimensions")
    scores = np.full(len(documents), -np.inf, np.float32)
    filled = np.flatnonzero(documents.counts)
    if not len(query) or not len(filled):
        scores[filled] = 0
        return scores
    step = max(_BLOCK // len(query), 1)  # tokens at a time
    first = 0
    while first < len(filled):
        start = documents.starts[filled[first]]
        last = int(np.searchsorted(documents.starts, start + step, side="right")) - 1
        some = filled[first : max(int(np.searchsorted(filled, last)), first + 1)]
        stop = documents.starts[some[-1] + 1]
        products = documents.values[start:stop] @ query.T
        best = np.maximum.reduceat(products, documents.starts[some] - start, axis=0)
        scores[some] = best.sum(axis=1)
        first += len(some)
    return scores
