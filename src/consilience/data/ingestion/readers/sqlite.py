"""SQLite databases, opened for reading only: every row of every table is a document, foreign keys are references."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consilience.data.documents import Document
from consilience.data.ingestion.readers.protocol import Failed, Item, Notice, row_document
from consilience.errors import DataError, did_you_mean

__all__ = ["REFERENCES", "check_tables", "read", "rows_in"]

REFERENCES = "references"
"""The field of a row's foreign keys: texts "column -> id of the row"."""


@dataclass(frozen=True)
class _Table:
    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]  # columns whose values name a row
    foreign: tuple[tuple[tuple[str, ...], str], ...]  # own columns, table whose key they hold
    notices: tuple[str, ...]


def read(path: Path, name: str, tables: Sequence[str] = ()) -> Iterator[Item]:
    """Yield the rows of all tables, or of those named, as documents "file#table.key".

    The key is the primary key, a column `id`, or SQLite's number of the row. A row that cannot be read is a failure of
    its own, and so is a table.
    """
    with _opened(path) as database:
        replaced: list[str] = []
        database.text_factory = lambda data: _text(data, replaced)
        for table in tables or _names(database):
            try:
                described = _described(database, table)
                for text in described.notices:
                    yield Notice(f"{name}#{table}", text)
                for found in _rows(database, described, name):
                    if replaced:
                        item = found.id if isinstance(found, Document) else found.item
                        yield Notice(item, "text that is not UTF-8: read as Windows-1252")
                        replaced.clear()
                    yield found
            except sqlite3.Error as error:
                yield Failed(f"{name}#{table}", f"the table cannot be read to its end ({error})")


def rows_in(path: Path, tables: Sequence[str] = ()) -> int:
    """Return how many rows there are; 1 where the file cannot be read."""
    try:
        with _opened(path) as database:
            queries = [f"SELECT count(*) FROM {_quoted(table)}" for table in tables or _names(database)]
            return sum(int(database.execute(query).fetchone()[0]) for query in queries)
    except (DataError, sqlite3.Error):
        return 1


def check_tables(path: Path, tables: Sequence[str]) -> None:
    """Raise DataError naming tables that are not in a file."""
    with _opened(path) as database:
        names = _names(database)
    for table in tables:
        if table not in names:
            raise DataError(f"{path}: no table {table!r}{did_you_mean(table, names)}")


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
            yield database
    except sqlite3.Error as error:
        raise DataError(f"no readable SQLite database ({error})") from error


def _names(database: sqlite3.Connection) -> list[str]:
    """Return the tables, without SQLite's own and those that full-text tables are kept in."""
    query = "SELECT name, coalesce(sql, '') FROM sqlite_master WHERE type = 'table' ORDER BY name"
    found = database.execute(query).fetchall()
    virtual = [name for name, sql in found if sql.upper().startswith("CREATE VIRTUAL")]
    hidden = ("sqlite_", *(f"{name}_" for name in virtual))
    return [name for name, _ in found if not name.startswith(hidden)]


def _key(database: sqlite3.Connection, table: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns of a table, and those that name a row (none: SQLite's number does)."""
    facts = database.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()
    columns = tuple(fact[1] for fact in facts)
    primary = tuple(fact[1] for fact in sorted(facts, key=lambda fact: fact[5]) if fact[5])
    return columns, primary or (("id",) if "id" in columns else ())


def _described(database: sqlite3.Connection, table: str) -> _Table:
    columns, key = _key(database, table)
    found: dict[int, list[Any]] = {}
    for fact in database.execute(f"PRAGMA foreign_key_list({_quoted(table)})"):
        found.setdefault(fact[0], []).append(fact)
    foreign, notices = [], []
    for facts in found.values():
        facts.sort(key=lambda fact: fact[1])
        target, own = facts[0][2], tuple(fact[3] for fact in facts)
        wanted = _key(database, target)[1]
        named = wanted if facts[0][4] is None else tuple(fact[4] for fact in facts)
        if wanted and set(named) == set(wanted) and len(own) == len(wanted):
            foreign.append((tuple(own[named.index(column)] for column in wanted), target))
        else:
            notices.append(f"foreign key {', '.join(own)} is not to the primary key of {target}: no reference is kept")
    return _Table(table, columns, key, tuple(foreign), tuple(notices))


def _rows(database: sqlite3.Connection, table: _Table, name: str) -> Iterator[Item]:
    number = "" if table.key else "rowid, "
    shown = ", ".join(_quoted(column) for column in table.columns)
    binary: set[str] = set()
    for place, row in enumerate(database.execute(f"SELECT {number}{shown} FROM {_quoted(table.name)}"), 1):
        values = dict(zip(table.columns, row if table.key else row[1:], strict=True))
        own = _joined([values[c] for c in table.key]) if table.key else str(row[0])
        kept = {column: value for column, value in values.items() if not isinstance(value, bytes)}
        for column in values.keys() - kept.keys() - binary:
            binary.add(column)
            yield Notice(f"{name}#{table.name}", f"column {column} holds binary values, which are left out")
        if len(table.key) == 1:
            kept.pop(table.key[0], None)
        try:
            document = row_document({**kept, "table": table.name, "_id": f"{table.name}.{own or place}"}, "", name)
        except DataError as error:
            yield Failed(f"{name}#{table.name}.{own or place}", str(error))
            continue
        links = [
            f"{', '.join(columns)} -> {name}#{target}.{_joined([values[c] for c in columns])}"
            for columns, target in table.foreign
            if all(values.get(column) is not None for column in columns)
        ]
        yield replace(document, fields={**document.fields, REFERENCES: tuple(links)}) if links else document


def _joined(values: Sequence[object]) -> str:
    return ",".join(value.hex() if isinstance(value, bytes) else str(value) for value in values)


def _text(data: bytes, replaced: list[str]) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        replaced.append("")
        return data.decode("cp1252", errors="replace")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
