"""Exact search of vectors in a quarter of the memory traffic: a byte a number first, the few that can win exactly.

A copy of the vectors with 8 bits a number is searched for more than k candidates, which are then compared as they are.
Every row of the copy is off by a distance that is known, so that no score is off by more than that distance times the
length of the query (Cauchy and Schwarz): where the k-th best exact score is above what any row that is no candidate can
have, the answer is that of a search through all vectors, and otherwise that search is made.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Coded", "coded"]

Best = tuple[NDArray[np.int64], NDArray[np.float32]]

_LEAST = 4096  # rows that are worth a copy
_SEARCHES = 3  # through the same rows before the copy is made: a process that searches once does not need it
_LARGEST = 1 << 30  # bytes of all copies of a process
_MORE = ((3, 150), (24, 1200))  # candidates: times k, and beyond; and where these were too few
_ROUNDING = 1e-5  # of the lengths: what sums in single precision are off by, and more
_TINY = 1e-30  # a largest number that is not 0
_STEP = 16_384  # rows that are coded at once
_PATIENCE = 16  # searches in vain, and more than half of all, after which the copy is left alone


@dataclass
class Coded:
    """A copy of rows with 8 bits a number, and how far off a row is at most.

    >>> rows = np.random.default_rng(0).normal(size=(5000, 64)).astype(np.float32)
    >>> made = Coded.of(rows)
    >>> made.search(rows[7:8], 1, lambda places: rows[places] @ rows[7])[0]
    array([7])

    scale: numbers are multiplied by it and rounded. slack: the largest distance of a row to its copy. longest: the
    largest length of a copy. searches: how often it was asked. short: how often the first candidates were too few.
    vain: how often the answer was not certain.
    """

    index: Any
    scale: float
    slack: float
    longest: float
    searches: int = 0
    short: int = 0
    vain: int = 0

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> Coded:
        """Copy finite vectors, (rows, dimension)."""
        import faiss

        scale = 127 / max(max(float(np.abs(some).max()) for some in _steps(vectors)), _TINY)
        index = faiss.IndexScalarQuantizer(
            vectors.shape[1], faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        )
        off = longest = 0.0
        for some in _steps(vectors):
            codes = np.rint(some * np.float32(scale))
            index.add(codes)
            codes /= np.float32(scale)
            codes -= some
            off = max(off, float(np.einsum("ij,ij->i", codes, codes).max()) ** 0.5)
            longest = max(longest, float(np.einsum("ij,ij->i", some, some).max()) ** 0.5)
        return cls(index, scale, off + _ROUNDING * longest, off + longest)

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        exact: Callable[[NDArray[np.int64]], NDArray[np.float32]],
        allowed: NDArray[np.bool_] | None = None,
    ) -> Best | None:
        """Return the places and scores of the best `k`, best first, or None where they are not certain.

        query: (1, dimension). exact: places of rows -> their scores. allowed: rows that may be found, at least `k`;
        None: all.
        """
        import faiss

        library: Any = faiss  # its types do not know the arguments below
        self.searches += 1
        skipped = int(2 * self.short > self.searches)  # where the first candidates are mostly too few
        scale = 127 / max(float(np.abs(query).max()), _TINY)
        codes = np.rint(query * np.float32(scale))
        off = query - codes / np.float32(scale)
        slack = self.slack * float(np.sqrt(query[0] @ query[0])) + self.longest * float(np.sqrt(off[0] @ off[0]))
        there, only = self.index.ntotal, None
        if allowed is not None:
            there = int(np.count_nonzero(allowed))
            bits = np.packbits(allowed, bitorder="little")
            only = library.SearchParameters(sel=library.IDSelectorBitmap(bits))
        for times, beyond in _MORE[skipped:]:
            count = min(times * k + beyond, there)
            near, found = self.index.search(codes, count, params=only)
            scores = exact(found[0])
            best = np.argsort(-scores, kind="stable")
            if k < count and scores[best[k - 1]] == scores[best[k]]:
                break  # which of them it is, the full search decides
            if count == there or scores[best[k - 1]] > near[0, -1] / (self.scale * scale) + slack:
                return found[0][best[:k]], scores[best[:k]]
            self.short += not skipped and times == _MORE[0][0]
        self.vain += 1
        return None

    def useful(self) -> bool:
        """Whether it is worth asking: rows that are all alike are never certain."""
        return self.vain < _PATIENCE or 2 * self.vain < self.searches


class _Copies:
    """The copies of a process, each for as long as its rows are there."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # what is forgotten may be so while it is held
        self._asked: dict[int, int] = {}
        self._made: dict[int, Coded] = {}
        self._sizes: dict[int, int] = {}  # bytes of each copy that is there or being made

    def get(self, vectors: NDArray[np.float32]) -> Coded | None:
        """Return the copy of rows; None while there is none. It is made in a thread of its own."""
        key = id(vectors)
        found = self._made.get(key)
        if found is not None:
            return found
        if len(vectors) < _LEAST:
            return None
        with self._lock:
            if key not in self._asked:
                weakref.finalize(vectors, self._forget, key).atexit = False
            self._asked[key] = asked = self._asked.get(key, 0) + 1
            if asked != _SEARCHES or sum(list(self._sizes.values())) + vectors.size > _LARGEST:
                return None
            self._sizes[key] = vectors.size
        threading.Thread(target=self._make, args=(key, vectors), name="coding", daemon=True).start()
        return None

    def _make(self, key: int, vectors: NDArray[np.float32]) -> None:
        made = Coded.of(vectors)
        with self._lock:
            if key in self._sizes:
                self._made[key] = made

    def _forget(self, key: int) -> None:
        with self._lock:
            for known in (self._asked, self._sizes, self._made):
                known.pop(key, None)


_COPIES = _Copies()


def coded(vectors: NDArray[np.float32]) -> Coded | None:
    """Return the copy of rows that are searched again and again; None while there is none."""
    return _COPIES.get(vectors)


def _steps(vectors: NDArray[np.float32]) -> Any:
    return (np.asarray(vectors[start : start + _STEP], np.float32) for start in range(0, len(vectors), _STEP))
