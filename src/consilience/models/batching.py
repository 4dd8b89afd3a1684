"""Token lists as arrays, and batches of similar length under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Tokens", "length_sorted_batches", "pad"]


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, one after the other.

    `ids` and `types` are int32 over all texts, `starts` (texts + 1) int64 says where each begins; `types` is None for
    models that have no token types; `prompt` is the number of leading prompt tokens that pooling leaves out.

    >>> tokens = Tokens.from_lists([[5, 6], [7]])
    >>> tokens.lengths.tolist(), tokens.text(1).tolist()
    ([2, 1], [7])
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    types: NDArray[np.int32] | None = None
    prompt: int = 0

    @classmethod
    def from_lists(
        cls, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None, prompt: int = 0
    ) -> Tokens:
        """Join lists of token ids."""
        starts = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(one) for one in ids], out=starts[1:])
        return cls(
            _join(ids, int(starts[-1])), starts, None if types is None else _join(types, int(starts[-1])), prompt
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each text, special tokens included."""
        return np.diff(self.starts)

    def text(self, index: int) -> NDArray[np.int32]:
        """Return the token ids of one text."""
        return self.ids[self.starts[index] : self.starts[index + 1]]


def _join(lists: Sequence[Sequence[int]], total: int) -> NDArray[np.int32]:
    return np.fromiter((token for one in lists for token in one), np.int32, total)


def length_sorted_batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of texts batch by batch, longest first, at most `budget` tokens each with padding.

    >>> [batch.tolist() for batch in length_sorted_batches(np.array([2, 9, 3, 8]), 18)]
    [[1, 3], [2, 0]]

    A text longer than the budget is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + count]
        start += count


def pad(
    tokens: Tokens, rows: NDArray[np.int64], *, pad_id: int, pad_type: int = 0, left: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
    """Return ids, mask and token types (or None) of some texts as (rows, longest) int64 arrays.

    >>> ids, mask, types = pad(Tokens.from_lists([[5, 6], [7]]), np.array([0, 1]), pad_id=0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [7, 0]], [[1, 1], [1, 0]])
    """
    lengths = tokens.starts[rows + 1] - tokens.starts[rows]
    width = int(lengths.max(initial=0))
    columns = np.arange(width)[None, :] - ((width - lengths)[:, None] if left else 0)
    real = (columns >= 0) & (columns < lengths[:, None])
    places = (tokens.starts[rows][:, None] + columns)[real]
    ids = np.full(real.shape, pad_id, np.int64)
    ids[real] = tokens.ids[places]
    types = None
    if tokens.types is not None:
        types = np.full(real.shape, pad_type, np.int64)
        types[real] = tokens.types[places]
    return ids, real.astype(np.int64), types
