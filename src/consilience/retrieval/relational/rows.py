"""The rows of an index as a store of a Searcher: questions about them find the rows that answer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from consilience.errors import RequestError
from consilience.retrieval.relational.query import RowAnswer, TableQuery, of_table, run_query
from consilience.retrieval.relational.questions import Understood, translate
from consilience.retrieval.relational.schema import RowTable, SchemaReader
from consilience.stores.vectors import Found
from consilience.stores.where import And, Where, parse_where

if TYPE_CHECKING:
    from consilience.retrieval.index import Index

__all__ = ["Rows"]

_NOTHING = np.empty(0, np.int64), np.empty(0, np.float32)


class Rows:
    """Answers questions from the rows of an index (see `consilience.retrieval.relational.questions`).

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> from consilience.retrieval.index import Index
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> films = {"Heat": 1995, "Solaris": 1972, "Moon": 2009}
    >>> file = "films.csv"
    >>> _ = index.add(Document(f"{file}#{n}", n, title=n, fields={"year": y}, source=file) for n, y in films.items())
    >>> rows = Rows(index)
    >>> rows.answer("How many films are from after 1990?").values
    {'': 2}
    >>> from consilience.retrieval.searcher import Searcher
    >>> searcher = Searcher(index, more={"rows": rows})
    >>> searcher.search(["the oldest film"], k=1)[0][0].document.title
    'Solaris'

    names: other words for tables. most: rows that a question may read. The schema is read when it is first needed, and
    after a commit what is new; all of it again where documents went or were replaced.
    """

    def __init__(self, index: Index, *, names: Mapping[str, Sequence[str]] | None = None, most: int = 100_000) -> None:
        self.index, self.names, self.most = index, dict(names or {}), most
        self._reading = threading.Lock()
        self._schema = SchemaReader(index)

    @property
    def tables(self) -> dict[str, RowTable]:
        """The tables whose rows are in the index."""
        with self._reading:
            return self._schema.read()

    def understand(self, question: str) -> Understood | None:
        """Return the query that a question asks, None where it is not about rows."""
        return translate(question, self.tables, names=self.names)

    def answer(self, question: str | TableQuery, *, where: Where | None = None, limit: int = 100) -> RowAnswer:
        """Return what the rows say. Raises RequestError where a question is not about rows that are there."""
        if isinstance(question, TableQuery):
            return run_query(self.index, question, where=where, limit=limit, most=self.most)
        found = self.understand(question)
        if found is None:
            known = "; ".join(f"{table.name}: {', '.join(table.columns)}" for table in self.tables.values())
            raise RequestError(f"question {question!r} names no column and no value of the rows ({known or 'none'})")
        return run_query(self.index, found.query, where=where, limit=limit, most=self.most)

    def search(self, queries: Sequence[str], k: int, *, where: Where | None = None) -> list[Found]:
        """Return the rows that answer each question, as a store does.

        Rows in an order fall from 1; all others that pass the filters are equal, and all of them come, up to `most`:
        what else is asked is for the other stores to say. A question that is not about rows finds nothing.
        """
        return [self._found(query, k, where) for query in queries]

    def _found(self, question: str, k: int, where: Where | None) -> Found:
        understood = self.understand(question)
        if understood is None:
            return Found(*_NOTHING)
        query = understood.query
        if query.order is None:
            own = of_table(query.table)
            given = [one for one in (query.where, None if where is None else parse_where(where)) if one is not None]
            numbers = self.index.stores.passing(And((*given, own)))[: self.most]
            return Found(numbers, np.ones(len(numbers), np.float32))
        answer = run_query(self.index, query, where=where, limit=k, most=self.most)
        known = self.index.stores.numbers([row.id for row in answer.rows])
        found = np.array([known[row.id] for row in answer.rows if row.id in known], np.int64)
        return Found(found, np.linspace(1, 0, len(found), endpoint=False, dtype=np.float32))
