"""Tables of a database: what a table is, and how its rows become documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from consilience.data.ingestion.readers.protocol import Failed, Item, Notice, row_document
from consilience.errors import DataError

__all__ = ["REFERENCES", "Table", "row_documents"]

REFERENCES = "references"
"""The field of a row's foreign keys: texts "column -> id of the row"."""


@dataclass(frozen=True)
class Table:
    """A table of a database.

    key: columns whose values name a row; none: its number does. foreign: own columns, and the table whose key they
    hold. notices: what is worth saying of it.
    """

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    foreign: tuple[tuple[tuple[str, ...], str], ...]
    notices: tuple[str, ...] = ()


def row_documents(table: Table, rows: Iterable[tuple[object, Sequence[object]]], source: str) -> Iterator[Item]:
    """Yield rows as documents "source#table.key", or with their number where the table has no key.

    rows: number and values, in the order of the columns. Binary values are left out, with a notice; a row that cannot
    be a document is a failure of its own.

    >>> table = Table("films", ("id", "title", "by"), ("id",), ((("by",), "people"),))
    >>> found = next(row_documents(table, [(1, (7, "Heat", 3))], "shop"))
    >>> found.id, found.fields["references"]
    ('shop#films.7', ('by -> shop#people.3',))
    """
    binary: set[str] = set()
    for place, (number, row) in enumerate(rows, 1):
        values = dict(zip(table.columns, row, strict=True))
        own = _joined(values, table.key) if table.key else str(number)
        kept = {column: value for column, value in values.items() if not isinstance(value, bytes)}
        for column in values.keys() - kept.keys() - binary:
            binary.add(column)
            yield Notice(f"{source}#{table.name}", f"column {column} holds binary values, which are left out")
        if len(table.key) == 1:
            kept.pop(table.key[0], None)
        try:
            if all(value is None for value in row):
                raise DataError("the row is empty")
            document = row_document({**kept, "table": table.name, "_id": f"{table.name}.{own or place}"}, "", source)
        except DataError as error:
            yield Failed(f"{source}#{table.name}.{own or place}", str(error))
            continue
        links = [
            f"{', '.join(columns)} -> {source}#{target}.{_joined(values, columns)}"
            for columns, target in table.foreign
            if all(values.get(column) is not None for column in columns)
        ]
        yield replace(document, fields={**document.fields, REFERENCES: tuple(links)}) if links else document


def _joined(values: Mapping[str, object], columns: Sequence[str]) -> str:
    found = (values[column] for column in columns)
    return ",".join(value.hex() if isinstance(value, bytes) else str(value) for value in found)
