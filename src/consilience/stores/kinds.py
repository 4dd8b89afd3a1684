"""Kinds of vectors: how each is checked, kept in segments, and searched.

A segment has `numbers` of documents; arrays with a row per document; and, of ragged kinds, `starts` (documents + 1) and
arrays in which a document has the rows between two starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from consilience.stores import multi, sparse, vectors
from consilience.stores.protocol import VectorSpace
from consilience.stores.segments import Arrays
from consilience.stores.vectors import Found

__all__ = ["KINDS", "Kind", "find_kind", "join", "take"]

_STARTS = "starts"


class Kind(Protocol):
    """What a kind of vectors does."""

    @property
    def ragged(self) -> tuple[str, ...]:
        """Arrays in which a document has several rows."""
        ...

    def check(self, values: Any, space: VectorSpace, *, what: str, names: Sequence[str] | None = None) -> Any:
        """Return vectors as they are kept and searched. Raises RequestError for what does not fit the space."""
        ...

    def arrays(self, values: Any, space: VectorSpace) -> dict[str, NDArray[Any]]:
        """Return checked vectors of documents as arrays of a segment."""
        ...

    def search(
        self, segments: Sequence[Arrays], queries: Any, k: int, live: NDArray[np.bool_], space: VectorSpace
    ) -> list[Found]:
        """Return the best documents for checked queries, of those that are live."""
        ...


class _Dense:
    ragged: tuple[str, ...] = ()

    def check(self, values: Any, space: VectorSpace, *, what: str, names: Sequence[str] | None = None) -> Any:
        return vectors.check_vectors(
            values, space.dimension, what=what, names=names, cosine=space.similarity == "cosine"
        )

    def arrays(self, values: Any, space: VectorSpace) -> dict[str, NDArray[Any]]:
        return {"vectors": values}

    def search(
        self, segments: Sequence[Arrays], queries: Any, k: int, live: NDArray[np.bool_], space: VectorSpace
    ) -> list[Found]:
        return vectors.search_vectors(segments, queries, k, live)


KINDS: Mapping[str, Kind] = {"dense": _Dense(), "multi": multi.Multi(), "sparse": sparse.Sparse()}


def find_kind(space: VectorSpace) -> Kind:
    """Return the kind of a space's vectors."""
    return KINDS[space.kind]


def take(kind: Kind, segment: Arrays, kept: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Return some documents of a segment; all of them as they are mapped."""
    if kept.all():
        return dict(segment)
    found = {name: values[kept] for name, values in segment.items() if name != _STARTS and name not in kind.ragged}
    if kind.ragged:
        counts = np.diff(segment[_STARTS])
        rows = np.repeat(kept, counts)
        found |= {name: segment[name][rows] for name in kind.ragged if name in segment}
        found[_STARTS] = np.concatenate([[0], np.cumsum(counts[kept])]).astype(np.int64)
    return found


def join(parts: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """Return several segments as one, document after document."""
    if len(parts) == 1:
        return dict(parts[0])
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != _STARTS}
    if _STARTS in parts[0]:
        counts = np.concatenate([np.diff(part[_STARTS]) for part in parts])
        found[_STARTS] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return found
