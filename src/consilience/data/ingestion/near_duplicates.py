"""Texts that are nearly the same as an earlier one: MinHash finds candidates, their shingles decide.

Signatures and shingles are kept in a temporary file, so memory does not grow with their number.

Source: A. Broder, "On the resemblance and containment of documents", 1997.
"""

from __future__ import annotations

import re
import sqlite3

import numpy as np
import xxhash
from numpy.typing import NDArray

from consilience.errors import RequestError

__all__ = ["NearDuplicates", "shingles"]

_HASHES = 128
_MISSED = 0.01  # of the pairs that are just as similar as asked
_PRIME = (1 << 31) - 1
_BLOCK = 4096  # shingles that are hashed at once
_CANDIDATES = 100  # that are compared with a text
_WORD = re.compile(r"\w+")


def shingles(text: str, size: int = 5) -> NDArray[np.uint32]:
    """Return the hashes of the runs of `size` words of a text, case folded, sorted, each once.

    >>> len(shingles("a rose is a rose is a rose"))
    3

    A text with fewer words is one run. Shape (runs,).
    """
    words = _WORD.findall(text.casefold())
    runs = {" ".join(words[start : start + size]) for start in range(max(len(words) - size + 1, 1))}
    return np.unique(np.fromiter((xxhash.xxh32_intdigest(run.encode()) for run in runs), np.uint32, len(runs)))


class NearDuplicates:
    """Remembers texts, and finds the earlier one that a text is nearly the same as.

    >>> words = [f"word{n}" for n in range(200)]
    >>> with NearDuplicates(0.9) as known:
    ...     print(known.seen("a", " ".join(words)), known.seen("b", " ".join([*words, "more"])))
    None ('a', 0.9949238578680203)

    threshold: the Jaccard similarity of runs of five words from which texts count as nearly the same, above 0, at most
    1. Found texts are not remembered. About one in a hundred pairs that are just at the threshold is missed; none that
    is found is below it.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise RequestError(f"near duplicates from {threshold}: a similarity above 0, at most 1")
        self.threshold = threshold
        sizes = [n for n in range(1, 17) if (1 - threshold**n) ** (_HASHES // n) <= _MISSED]
        self._rows = max(sizes, default=1)
        drawn = np.random.default_rng(0).integers(1, _PRIME, (2, _HASHES), np.int64).astype(np.uint64)
        self._factors, self._offsets = drawn
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # a temporary file
        self._file.executescript(
            "CREATE TABLE texts(number INTEGER PRIMARY KEY, name TEXT, shingles BLOB);"
            "CREATE TABLE bands(band INTEGER, number INTEGER, PRIMARY KEY(band, number)) WITHOUT ROWID;"
            "BEGIN"
        )

    def __enter__(self) -> NearDuplicates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the temporary file."""
        self._file.close()

    def seen(self, name: str, text: str) -> tuple[str, float] | None:
        """Return the name of the most similar earlier text and how similar it is, or remember this one."""
        own = shingles(text)
        bands = self._bands(own)
        marks = ", ".join("?" * len(bands))
        query = (
            f"SELECT number FROM bands WHERE band IN ({marks}) GROUP BY number ORDER BY count(*) DESC, number LIMIT ?"
        )
        best: tuple[str, float] | None = None
        for (number,) in self._file.execute(query, [*bands, _CANDIDATES]).fetchall():
            other, data = self._file.execute("SELECT name, shingles FROM texts WHERE number = ?", (number,)).fetchone()
            theirs = np.frombuffer(data, np.uint32)
            shared = len(np.intersect1d(own, theirs, assume_unique=True))
            similarity = shared / (len(own) + len(theirs) - shared)
            if similarity >= self.threshold and (best is None or similarity > best[1]):
                best = other, similarity
        if best is None:
            values = (name, own.tobytes())
            number = self._file.execute("INSERT INTO texts(name, shingles) VALUES (?, ?)", values).lastrowid
            self._file.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, number) for band in bands])
        return best

    def _bands(self, own: NDArray[np.uint32]) -> list[int]:
        lowest = np.full(_HASHES, _PRIME, np.uint64)
        for start in range(0, len(own), _BLOCK):
            some = own[start : start + _BLOCK].astype(np.uint64) % np.uint64(_PRIME)
            hashed = (some[:, None] * self._factors + self._offsets) % np.uint64(_PRIME)
            np.minimum(lowest, hashed.min(axis=0), out=lowest)
        cut = lowest[: _HASHES // self._rows * self._rows].reshape(-1, self._rows)
        hashes = [xxhash.xxh3_64_intdigest(row.tobytes(), seed=place) for place, row in enumerate(cut)]
        return [one - (1 << 63) for one in hashes]  # as SQLite's integers
