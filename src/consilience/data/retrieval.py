"""A retrieval dataset with roles: what a learner may see, and what only the ruler sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from consilience.core.hashing import fingerprint
from consilience.data.layout import SPLITS, Tables, read_tables
from consilience.errors import DataError, LeakageError, did_you_mean

if TYPE_CHECKING:
    from consilience.data.pairs import TrainingPairs
    from consilience.data.reserved import ReservedQueries

__all__ = ["ROLES", "Documents", "Qrels", "Queries", "RetrievalData", "View"]

ROLES = ("train", "dev", "test", "unlabelled")

Qrels = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score; 0 means judged not relevant, an absent document is not judged."""


@dataclass(frozen=True)
class Documents:
    """Documents in the order of the file; the text is title, a space, text (text alone without a title)."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Id -> position."""
        return {key: index for index, key in enumerate(self.ids)}


@dataclass(frozen=True)
class Queries:
    """Queries of one split in the order of the file."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class View:
    """What a learner gets for a role. `qrels` is None without labels; `transductive` asks for a stamp in reports."""

    role: str
    split: str
    documents: Documents
    queries: Queries
    qrels: Qrels | None
    transductive: bool


@dataclass(frozen=True)
class RetrievalData:
    """Documents, queries and relevance judgements of one domain.

    >>> data = RetrievalData.of(
    ...     "tiny",
    ...     documents={"d1": "sort a list", "d2": "open a file"},
    ...     queries={"q1": ("how to sort", "train"), "q2": ("reading files", "test")},
    ...     judgements=[("q1", "d1", 1), ("q2", "d2", 1)],
    ... )
    >>> data.queries("test").texts, data.qrels("test")
    (('reading files',), {'q2': {'d2': 1.0}})
    >>> data.view("test")
    Traceback (most recent call last):
    ...
    consilience.errors.LeakageError: dataset tiny: a learner asked for the split 'test'; learn from 'train', select \
on 'dev', or ask for the role 'unlabelled' (texts without labels)

    `queries(split)` and `qrels(split)` are for measuring; learners use `view(role)` and `training_pairs()`.
    """

    name: str
    tables: Tables = field(repr=False)
    folder: Path | None = None

    @staticmethod
    def open(folder: str | Path, *, name: str | None = None) -> RetrievalData:
        """Open a folder with `corpus.parquet`, `queries.parquet` and `qrels.parquet`.

        Columns: `_id, title, text`; `_id, text, split`; `query_id, corpus_id, score, split` with the splits train,
        dev, test. Raises DataError listing every problem; what was left out is in `notes`.
        """
        folder = Path(folder)
        return RetrievalData(name or folder.resolve().name, read_tables(folder), folder)

    @staticmethod
    def of(
        name: str,
        *,
        documents: Mapping[str, str],
        queries: Mapping[str, tuple[str, str]],
        judgements: Iterable[tuple[str, str, float]],
    ) -> RetrievalData:
        """Make a dataset from plain values: id -> text, id -> (text, split), (query id, document id, score).

        Raises DataError for unknown splits and for judgements that name unknown ids.
        """
        from consilience.data.layout import Judgement

        judged = tuple(Judgement(query, document, float(score)) for query, document, score in judgements)
        unknown = [pair for pair in judged if pair.query_id not in queries or pair.document_id not in documents]
        splits = sorted({split for _, split in queries.values()} - set(SPLITS))
        if unknown or splits:
            raise DataError(
                f"dataset {name}: unknown splits {splits}, {len(unknown)} judgements of unknown ids; "
                f"splits are {', '.join(SPLITS)}, judgements name given queries and documents"
            )
        texts = [text for text, _ in queries.values()]
        tables = Tables(
            tuple(documents),
            tuple(documents.values()),
            tuple(queries),
            tuple(texts),
            tuple(split for _, split in queries.values()),
            judged,
            (),
        )
        return RetrievalData(name, tables)

    @cached_property
    def documents(self) -> Documents:
        """All documents, shared by every split."""
        return Documents(self.tables.document_ids, self.tables.document_texts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out when the dataset was opened, in words."""
        return self.tables.notes

    @cached_property
    def content_hash(self) -> str:
        """The identity of the content (ids, texts, splits, judgements, in order), whatever wrote the files."""
        tables = self.tables
        judged = [[item.query_id, item.document_id, item.score] for item in tables.judgements]
        columns = (tables.document_ids, tables.document_texts, tables.query_ids, tables.query_texts)
        return fingerprint([*map(list, columns), list(tables.query_splits), judged])

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of queries, of the splits that have any."""
        counts = {split: self.tables.query_splits.count(split) for split in SPLITS}
        return {split: count for split, count in counts.items() if count}

    def queries(self, split: str) -> Queries:
        """Return the queries of a split (train, dev, test); raises DataError when it has none."""
        return self._queries[self._known(split)]

    def qrels(self, split: str) -> Qrels:
        """Return the judgements of a split's queries; for measuring, not for learning."""
        return self._qrels[self._known(split)]

    def view(self, role: str, *, of: str | None = None) -> View:
        """Return what a learner may see in a role: train and dev with labels, unlabelled without.

        `unlabelled` is the train split unless `of` names another one; texts of dev or test make the learner
        transductive, which the view says and reports are stamped with. `test` raises LeakageError.
        """
        if role not in ROLES:
            raise DataError(f"dataset {self.name}: unknown role {role!r}{did_you_mean(role, ROLES)}")
        if role == "test":
            raise LeakageError(
                f"dataset {self.name}: a learner asked for the split 'test'; learn from 'train', select on 'dev', "
                "or ask for the role 'unlabelled' (texts without labels)"
            )
        if role != "unlabelled":
            if of not in (None, role):
                raise DataError(f"dataset {self.name}: role {role!r} is the split {role!r}, not {of!r}")
            return View(role, role, self.documents, self.queries(role), self.qrels(role), False)
        split = of or "train"
        return View(role, split, self.documents, self.queries(split), None, split != "train")

    def training_pairs(
        self,
        *,
        split: str = "train",
        against: Iterable[RetrievalData] = (),
        reserved: ReservedQueries | None = None,
        on_leak: Literal["drop", "refuse"] = "drop",
    ) -> TrainingPairs:
        """Return queries with their relevant documents for training; see data.pairs.training_pairs.

        A query identical (case, white space and final punctuation ignored) to a dev or test query of this dataset
        or of `against`, or on the reserved list (default: the list in the public data folder, where there is one),
        is dropped and counted, or refused with LeakageError. Splits other than train raise LeakageError.
        """
        from consilience.data.pairs import training_pairs

        return training_pairs(self, split=split, against=against, reserved=reserved, on_leak=on_leak)

    def _known(self, split: str) -> str:
        if split not in SPLITS:
            raise DataError(f"dataset {self.name}: unknown split {split!r}{did_you_mean(split, SPLITS)}")
        if split not in self._queries:
            raise DataError(
                f"dataset {self.name}: no queries in the split {split!r}; it has "
                + ", ".join(f"{name} ({count})" for name, count in self.splits.items())
            )
        return split

    @cached_property
    def _queries(self) -> dict[str, Queries]:
        parts: dict[str, tuple[list[str], list[str]]] = {}
        tables = self.tables
        for key, text, split in zip(tables.query_ids, tables.query_texts, tables.query_splits, strict=True):
            ids, texts = parts.setdefault(split, ([], []))
            ids.append(key)
            texts.append(text)
        return {split: Queries(tuple(ids), tuple(texts)) for split, (ids, texts) in parts.items()}

    @cached_property
    def _qrels(self) -> dict[str, dict[str, dict[str, float]]]:
        split_of = dict(zip(self.tables.query_ids, self.tables.query_splits, strict=True))
        parts: dict[str, dict[str, dict[str, float]]] = {split: {} for split in self.splits}
        for item in self.tables.judgements:
            parts[split_of[item.query_id]].setdefault(item.query_id, {})[item.document_id] = item.score
        return parts
