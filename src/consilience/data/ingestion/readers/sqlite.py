"""SQLite databases, opened for reading only: every row of every table is a document, foreign keys are references."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from consilience.data.documents import Document
from consilience.data.ingestion.readers.protocol import Failed, Item, Notice
from consilience.data.ingestion.readers.tables import Table, row_documents
from consilience.errors import DataError, did_you_mean

__all__ = ["check_tables", "read", "rows_in"]


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


def _described(database: sqlite3.Connection, table: str) -> Table:
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
    return Table(table, columns, key, tuple(foreign), tuple(notices))


def _rows(database: sqlite3.Connection, table: Table, name: str) -> Iterator[Item]:
    number = "0" if table.key else "rowid"
    shown = ", ".join(_quoted(column) for column in table.columns)
    found = database.execute(f"SELECT {number}, {shown} FROM {_quoted(table.name)}")
    return row_documents(table, ((row[0], row[1:]) for row in found), name)


def _text(data: bytes, replaced: list[str]) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        replaced.append("")
        return data.decode("cp1252", errors="replace")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
