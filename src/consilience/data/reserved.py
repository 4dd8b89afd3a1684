"""Queries that no training set may contain, known only by their hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from consilience.core.hashing import fingerprint
from consilience.data.text import fold, query_key
from consilience.errors import DataError

__all__ = ["ReservedQueries", "default_data_folder"]

_DIGITS = 16
_ENDINGS = ("", ".", "?", "!", " ?", " .")


def default_data_folder() -> Path:
    """Return the folder of public data: `$CONSILIENCE_DATA`, else `../shared/data`."""
    return Path(os.environ.get("CONSILIENCE_DATA") or "../shared/data")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class ReservedQueries:
    """A list of query hashes: the first 16 hexadecimal digits of sha256 of the folded text.

    >>> reserved = ReservedQueries.of(["What is NumPy?"])
    >>> "what is  numpy?" in reserved, "What is SciPy?" in reserved
    (True, False)

    Membership ignores case and white space; final punctuation is tried with and without the usual endings.
    """

    hashes: frozenset[str]
    source: str = ""

    @staticmethod
    def of(texts: Iterable[str]) -> ReservedQueries:
        """Make the list of the given texts."""
        return ReservedQueries(frozenset(_digest(fold(text)) for text in texts), "texts")

    @staticmethod
    def empty() -> ReservedQueries:
        """Return a list that reserves nothing."""
        return ReservedQueries(frozenset(), "")

    @staticmethod
    def read(path: str | Path) -> ReservedQueries:
        """Read a file with one hash per line; raises DataError naming the first bad line."""
        path = Path(path)
        try:
            lines = path.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"reserved queries {path}: cannot be read ({error})") from error
        for number, line in enumerate(lines, 1):
            if len(line) != _DIGITS or line.strip("0123456789abcdef"):
                raise DataError(
                    f"reserved queries {path}, entry {number}: {line[:40]!r} is not {_DIGITS} hexadecimal digits "
                    "(sha256 of the lower-cased, white-space-folded text, shortened)"
                )
        return ReservedQueries(frozenset(lines), str(path))

    @staticmethod
    def find() -> ReservedQueries:
        """Read `reserved_queries.txt` of the public data folder; reserve nothing where there is none."""
        path = default_data_folder() / "reserved_queries.txt"
        return ReservedQueries.read(path) if path.is_file() else ReservedQueries.empty()

    @property
    def content_hash(self) -> str:
        """The identity of the list, for records."""
        return fingerprint(sorted(self.hashes))

    def __contains__(self, text: str) -> bool:
        if not self.hashes:
            return False
        if _digest(fold(text)) in self.hashes:
            return True
        key = query_key(text)
        return any(_digest(key + ending) in self.hashes for ending in _ENDINGS)

    def __len__(self) -> int:
        return len(self.hashes)
