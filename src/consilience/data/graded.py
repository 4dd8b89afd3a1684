"""Pairs of texts with a graded similarity, in splits with roles: what learners may see, and what only the ruler."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from consilience.core.hashing import fingerprint
from consilience.data.layout import SPLITS
from consilience.data.reserved import ReservedQueries
from consilience.data.retrieval import RetrievalData
from consilience.data.sampling import draw_order
from consilience.data.text import query_key
from consilience.errors import DataError, LeakageError, MissingExtraError, Problems

__all__ = ["GradedData", "GradedPairs"]

_COLUMNS = ("sentence1", "sentence2", "score", "split")
Scored = tuple[str, str, float]


@dataclass(frozen=True)
class GradedPairs:
    """Pairs of a split with their scores, 0 to 1. `dropped` counts what was left out, by reason."""

    name: str
    split: str
    first: tuple[str, ...] = field(repr=False)
    second: tuple[str, ...] = field(repr=False)
    scores: tuple[float, ...] = field(repr=False)
    dropped: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def content_hash(self) -> str:
        """The identity of the pairs with their scores, for records."""
        return fingerprint([list(self.first), list(self.second), list(self.scores)])

    def describe(self) -> dict[str, object]:
        """Return the facts for a record: name, count, what was dropped and checked, the hash."""
        return {
            "name": self.name,
            "pairs": len(self),
            "dropped": dict(self.dropped),
            "checked_against": dict(self.sources),
            "content_hash": self.content_hash,
        }

    def sample(self, limit: int) -> GradedPairs:
        """Return at most `limit` pairs, drawn by hashes of their texts, in their order."""
        keys = [draw_order(f"{first}\n{second}") for first, second in zip(self.first, self.second, strict=True)]
        kept = sorted(sorted(range(len(keys)), key=lambda place: keys[place])[:limit])
        first, second = (tuple(side[place] for place in kept) for side in (self.first, self.second))
        return GradedPairs(self.name, self.split, first, second, tuple(self.scores[place] for place in kept))


@dataclass(frozen=True)
class GradedData:
    """Pairs of texts with scores, in the splits train, dev and test.

    >>> data = GradedData.of(
    ...     "tiny", highest=5, train=[("a cat", "a dog", 4), ("a dog", "a puppy", 5)], test=[("A puppy.", "a dog", 5)]
    ... )
    >>> data.training().scores, data.training().dropped["same as a dev or test pair"]
    ((0.8,), 1)
    >>> data.pairs("test").scores
    (1.0,)

    Scores are divided by `highest`, the score of texts that mean the same, so they lie between 0 and 1. `pairs(split)`
    is for measuring; learners use `training()`. Two pairs are the same when their texts are, in either order, apart
    from case, white space and final punctuation; dev pairs that are in test too are left out of dev.
    """

    name: str
    splits: Mapping[str, GradedPairs] = field(repr=False)
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(
        name: str,
        *,
        train: Iterable[Scored] = (),
        dev: Iterable[Scored] = (),
        test: Iterable[Scored] = (),
        highest: float | None = None,
        folder: Path | None = None,
    ) -> GradedData:
        """Make a set of (text, text, score); `highest` is the largest score of all splits unless it is given.

        Raises DataError listing empty texts and scores below 0, above `highest` or not finite (-1: without a score).
        """
        given = {split: list(pairs) for split, pairs in zip(SPLITS, (train, dev, test), strict=True)}
        found = [score for pairs in given.values() for _, _, score in pairs]
        top = max(found, default=0.0) if highest is None else float(highest)
        problems = Problems()
        if not top > 0:
            problems.add(f"{len(found)} pairs, highest score {top:g}; it has to be above 0")
        for split, pairs in given.items():
            wrong = [score for _, _, score in pairs if not (math.isfinite(score) and 0 <= score <= top)]
            if wrong:
                problems.add(f"{split}: {len(wrong)} scores are outside 0 to {top:g}, such as {wrong[0]:g}")
            empty = sum(not (first.strip() and second.strip()) for first, second, _ in pairs)
            if empty:
                problems.add(f"{split}: {empty} pairs have an empty text")
        problems.raise_if_any(DataError, name)
        tested = {_key(first, second) for first, second, _ in given["test"]}
        apart = [pair for pair in given["dev"] if _key(*pair[:2]) not in tested]
        both, given["dev"] = len(given["dev"]) - len(apart), apart
        notes = (f"{both} dev pairs are in test too and were left out of dev",) if both else ()
        splits = {
            split: GradedPairs(name, split, *_columns([(a, b, float(score) / top) for a, b, score in pairs]))
            for split, pairs in given.items()
            if pairs
        }
        return GradedData(name, splits, folder, notes)

    @staticmethod
    def open(folder: str | Path, *, name: str | None = None, highest: float | None = None) -> GradedData:
        """Open a folder with `data.parquet`: columns sentence1, sentence2, score, split (train, dev, test).

        Raises DataError listing what is missing or wrong.
        """
        folder = Path(folder)
        path = folder / "data.parquet"
        if not path.is_file():
            raise DataError(f"{path}: no such file; graded pairs are data.parquet with {', '.join(_COLUMNS)}")
        try:
            from pyarrow import ArrowInvalid, parquet
        except ImportError as error:
            raise MissingExtraError("pyarrow", "bench") from error
        try:
            table = parquet.read_table(path)
        except ArrowInvalid as error:
            raise DataError(f"{path}: not a parquet file ({error})") from error
        missing = [column for column in _COLUMNS if column not in table.column_names]
        if missing:
            raise DataError(f"{path}: no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
        columns = [table.column(column).to_pylist() for column in _COLUMNS]
        empty = [column for column, values in zip(_COLUMNS, columns, strict=True) if None in values]
        unknown = sorted({str(split) for split in columns[3]} - set(SPLITS))
        if empty or unknown:
            raise DataError(f"{path}: values are missing in {empty or 'no column'}, unknown splits {unknown or 'none'}")
        parts: dict[str, list[Scored]] = {split: [] for split in SPLITS}
        for first, second, score, split in zip(*columns, strict=True):
            parts[split].append((first, second, float(score)))
        return GradedData.of(name or folder.resolve().name, highest=highest, folder=folder, **parts)

    @cached_property
    def content_hash(self) -> str:
        """The identity of all splits, for records."""
        return fingerprint({split: part.content_hash for split, part in self.splits.items()})

    def pairs(self, split: str) -> GradedPairs:
        """Return a split, for measuring. Raises DataError when it has no pairs."""
        if split not in self.splits:
            raise DataError(f"{self.name}: no split {split!r}; it has {', '.join(self.splits) or 'none'}")
        return self.splits[split]

    def training(
        self,
        *,
        split: str = "train",
        against: Iterable[GradedData | RetrievalData] = (),
        reserved: ReservedQueries | None = None,
    ) -> GradedPairs:
        """Return the training pairs without those that are held out here or in `against`, or reserved; see `dropped`.

        A pair is dropped when it is a dev or test pair, or one of its texts a dev or test query or a reserved one.
        Raises LeakageError for another split than train, DataError when nothing is left.
        """
        if split != "train":
            raise LeakageError(f"{self.name}: training pairs of the split {split!r} were asked for; only 'train' is")
        reserved = ReservedQueries.find() if reserved is None else reserved
        others = list({id(other): other for other in (self, *against)}.values())
        held, queries = _held_out(others)
        dropped = {"same as a dev or test pair": 0, "same as a dev or test query": 0, "reserved": 0}
        kept: list[Scored] = []
        own = self.pairs("train")
        for first, second, score in zip(own.first, own.second, own.scores, strict=True):
            keys = (query_key(first), query_key(second))
            if _key(first, second) in held:
                dropped["same as a dev or test pair"] += 1
            elif any(key in queries for key in keys):
                dropped["same as a dev or test query"] += 1
            elif first in reserved or second in reserved:
                dropped["reserved"] += 1
            else:
                kept.append((first, second, score))
        if not kept:
            raise DataError(f"{self.name}: none of its {len(own)} training pairs is left ({dropped})")
        sources = {other.name: other.content_hash for other in others}
        return GradedPairs(self.name, "train", *_columns(kept), dropped, sources)


def _key(first: str, second: str) -> tuple[str, ...]:
    return tuple(sorted((query_key(first), query_key(second))))


def _columns(pairs: list[Scored]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[float, ...]]:
    return tuple(a for a, _, _ in pairs), tuple(b for _, b, _ in pairs), tuple(score for _, _, score in pairs)


def _held_out(others: Iterable[GradedData | RetrievalData]) -> tuple[set[tuple[str, ...]], set[str]]:
    pairs: set[tuple[str, ...]] = set()
    queries: set[str] = set()
    for other in others:
        for split in ("dev", "test"):
            if split not in other.splits:
                continue
            if isinstance(other, GradedData):
                part = other.splits[split]
                pairs.update(_key(a, b) for a, b in zip(part.first, part.second, strict=True))
            else:
                queries.update(map(query_key, other.queries(split).texts))
    return pairs, queries
