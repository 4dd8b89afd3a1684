"""What the rows of an index look like: tables, their columns, the values and ranges of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consilience.data.documents import Document
from consilience.data.ingestion.edges.protocol import is_row, normal_entity

if TYPE_CHECKING:
    from consilience.retrieval.index import Index

__all__ = ["Column", "RowTable", "read_schema", "table_of"]

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
    columns: Mapping[str, Column]
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
    tables: dict[str, dict[str, Column]] = {}
    counts: dict[str, int] = {}
    for document in _all(index):
        name = table_of(document)
        if name is None:
            continue
        counts[name] = counts.get(name, 0) + 1
        columns = tables.setdefault(name, {})
        for key, value in (("title", document.title or None), *document.fields.items()):
            if key != "table" and value is not None:
                column = columns.setdefault(key, Column(key))
                for one in value if isinstance(value, tuple) else (value,):
                    column.see(one)
    return {name: RowTable(name, columns, counts[name]) for name, columns in tables.items()}


def _all(index: Index) -> Iterable[Document]:
    numbers = index.stores.passing().tolist()
    for start in range(0, len(numbers), _AT_ONCE):
        yield from index.stores.documents(numbers[start : start + _AT_ONCE]).values()
