"""What the rows of an index look like: tables, their columns, the values and ranges of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consilience.data.documents import Document
from consilience.data.ingestion.edges.protocol import is_row, normal_entity

if TYPE_CHECKING:
    from consilience.retrieval.index import Index

__all__ = ["Column", "RowTable", "SchemaReader", "read_schema", "table_of"]

_AT_ONCE = 5_000  # documents that are read together
_VALUES = 50_000  # different texts of a column that are known


@dataclass
class Column:
    """A column of rows: its texts (folded -> as written), its numbers' range."""

    name: str
    values: dict[str, str] = field(default_factory=dict, repr=False)
    low: float | None = None
    high: float | None = None

    @property
    def numeric(self) -> bool:
        """Whether it has numbers."""
        return self.low is not None

    def copy(self) -> Column:
        """Return another of the same."""
        return Column(self.name, dict(self.values), self.low, self.high)

    def see(self, value: object) -> None:
        """Take a value into account."""
        if isinstance(value, bool):
            return
        if isinstance(value, int | float):
            self.low = value if self.low is None else min(self.low, value)
            self.high = value if self.high is None else max(self.high, value)
        elif isinstance(value, str) and len(self.values) < _VALUES:
            self.values.setdefault(normal_entity(value), value)


@dataclass
class RowTable:
    """Rows of one table of a database, or of one file."""

    name: str
    columns: dict[str, Column]
    count: int

    def numbers(self) -> list[Column]:
        """Return the columns with numbers."""
        return [column for column in self.columns.values() if column.numeric]


def table_of(document: Document) -> str | None:
    """Return the table that a row is of: the field `table` of databases, else its file; None for other documents.

    >>> table_of(Document("films.csv#7", "A heist.", fields={"year": 1999}, source="films.csv"))
    'films.csv'
    """
    if not is_row(document):
        return None
    named = document.fields.get("table")
    return named if isinstance(named, str) else document.source


def read_schema(index: Index) -> dict[str, RowTable]:
    """Return the tables whose rows are in an index, by name. Reads all documents once."""
    return SchemaReader(index).read()


class SchemaReader:
    """Reads the schema of an index, and after commits that only add reads what is new."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._generation = -1
        self._clear()

    def _clear(self) -> None:
        self._numbers: NDArray[np.int64] = np.empty(0, np.int64)
        self._tables: dict[str, RowTable] = {}

    def read(self) -> dict[str, RowTable]:
        """Return the tables by name; those of the last call where nothing was committed since."""
        generation = self.index.stores.generation()
        if generation == self._generation:
            return self._tables
        numbers = self.index.stores.passing()
        new = np.setdiff1d(numbers, self._numbers, assume_unique=True)
        if len(numbers) - len(new) < len(self._numbers):  # some went: what only they had goes, too
            self._clear()
            new = numbers
        tables = {  # a reader of the last schema may still be at work
            name: RowTable(name, {key: column.copy() for key, column in table.columns.items()}, table.count)
            for name, table in self._tables.items()
        }
        for start in range(0, len(new), _AT_ONCE):
            for document in self.index.stores.documents(new[start : start + _AT_ONCE].tolist()).values():
                _see(tables, document)
        self._generation, self._numbers, self._tables = generation, numbers, tables
        return tables


def _see(tables: dict[str, RowTable], document: Document) -> None:
    name = table_of(document)
    if name is None:
        return
    table = tables.setdefault(name, RowTable(name, {}, 0))
    table.count += 1
    for key, value in (("title", document.title or None), *document.fields.items()):
        if key != "table" and value is not None:
            column = table.columns.setdefault(key, Column(key))
            for one in value if isinstance(value, tuple) else (value,):
                column.see(one)
