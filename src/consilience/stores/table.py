"""Documents, fields, edges and the list of segments in SQLite: the truth of an index, whose transaction is the commit.

A document has a number, never used again. What is deleted or replaced keeps its row, with the generation in which it
went, until the index is compacted: a reader sees the state of its own generation while a writer goes on.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.core.atomic import storage_error
from consilience.data.documents import Document, Part
from consilience.errors import DataError, StorageError, VerificationError
from consilience.stores.where import Filter
from consilience.stores.where_sqlite import sqlite_condition

__all__ = ["Edge", "Snapshot", "Table", "Transaction"]

_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE documents(
  number INTEGER PRIMARY KEY, id TEXT NOT NULL, parent TEXT, title TEXT NOT NULL, source TEXT, text TEXT, parts TEXT,
  fields TEXT NOT NULL, digest TEXT NOT NULL, added INTEGER NOT NULL, removed INTEGER);
CREATE UNIQUE INDEX live_ids ON documents(id) WHERE removed IS NULL;
CREATE INDEX parents ON documents(parent) WHERE parent IS NOT NULL;
CREATE INDEX gone ON documents(removed) WHERE removed IS NOT NULL;
CREATE TABLE edges(head TEXT NOT NULL, relation TEXT NOT NULL, tail TEXT NOT NULL, weight REAL NOT NULL,
  number INTEGER NOT NULL REFERENCES documents(number));
CREATE INDEX heads ON edges(head);
CREATE INDEX tails ON edges(tail);
CREATE INDEX evidence ON edges(number);
CREATE TABLE segments(name TEXT PRIMARY KEY, space TEXT NOT NULL, rows INTEGER NOT NULL, files TEXT NOT NULL,
  added INTEGER NOT NULL, retired INTEGER) WITHOUT ROWID;
"""
_COLUMNS = "number, id, parent, title, source, text, parts, fields"
_WAIT = 30.0  # seconds for another process to finish its commit
_FEW = 100  # documents that are asked for by a parameter each
_CACHE = 16_384  # KiB of pages that a connection holds


@dataclass(frozen=True)
class Edge:
    """A relation between two entities or documents, and the id of the document that says so.

    `head` and `tail` are names of entities or ids of documents; weight above 0.
    """

    head: str
    relation: str
    tail: str
    document: str
    weight: float = 1.0


@dataclass(frozen=True)
class Snapshot:
    """The committed state that a reader works on.

    `live` says of every number whether its document is there. `segments`: (name, space, rows, files).
    """

    generation: int
    live: NDArray[np.bool_]
    count: int
    segments: tuple[tuple[str, str, int, Mapping[str, Any]], ...]
    meta: Mapping[str, Any]


class Table:
    """The SQLite file of an index; safe for several threads and processes, one of which writes."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path, self._write = path, write
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._last: Snapshot | None = None
        self._connection()

    @classmethod
    def create(cls, path: Path) -> Table:
        """Make the file with empty tables, generation 0."""
        with _storage(path):
            database = sqlite3.connect(path)
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript(_SCHEMA)
            database.executemany("INSERT INTO meta VALUES (?, ?)", [("generation", 0), ("next", 0), ("compacted", 0)])
            database.commit()
            database.close()
        return cls(path, write=True)

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            with _storage(self.path):
                uri = f"{self.path.resolve().as_uri()}?mode={'rw' if self._write else 'ro'}"
                found = sqlite3.connect(uri, uri=True, timeout=_WAIT, isolation_level=None, check_same_thread=False)
                if self._write:
                    found.execute("PRAGMA synchronous = FULL")
                found.execute(f"PRAGMA cache_size = -{_CACHE}")
                found.execute("SELECT count(*) FROM meta")
            self._local.connection = found
            with self._lock:
                self._opened.append(found)
        return found

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._opened:
                connection.close()
            self._opened.clear()
        self._local = threading.local()

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """Run a query of our own and return its rows."""
        with _storage(self.path):
            return self._connection().execute(query, values).fetchall()

    def snapshot(self) -> Snapshot:
        """Return the last committed state; the same object while nothing was committed."""
        database = self._connection()
        with _storage(self.path), self._lock:
            last = self._last
            now = database.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()[0]
            if last is not None and last.generation == now:
                return last
            database.execute("BEGIN")
            try:
                meta = dict(database.execute("SELECT key, value FROM meta").fetchall())
                segments = database.execute(
                    "SELECT name, space, rows, files FROM segments WHERE retired IS NULL ORDER BY name"
                ).fetchall()
                live = self._live(database, last if last and last.meta["compacted"] == meta["compacted"] else None)
                count = database.execute("SELECT count(*) FROM documents WHERE removed IS NULL").fetchone()[0]
            finally:
                database.execute("COMMIT")
            described = tuple((name, space, rows, json.loads(files)) for name, space, rows, files in segments)
            self._last = Snapshot(meta["generation"], live, count, described, meta)
            return self._last

    def _live(self, database: sqlite3.Connection, last: Snapshot | None) -> NDArray[np.bool_]:
        size = database.execute("SELECT coalesce(max(number), -1) + 1 FROM documents").fetchone()[0]
        since = last.generation if last else -1
        known = len(last.live) if last else 0
        live = np.zeros(max(size, known), np.bool_)
        if last:
            live[:known] = last.live
        new = "SELECT number FROM documents WHERE number >= ? AND removed IS NULL"
        live[_numbers(database.execute(new, (known,)))] = True
        live[_numbers(database.execute("SELECT number FROM documents WHERE removed > ?", (since,)))] = False
        return live

    def passing(self, found: Filter, snapshot: Snapshot) -> NDArray[np.bool_]:
        """Return which numbers get through a filter in the state of a snapshot."""
        text, values = sqlite_condition(found)
        query = f"SELECT number FROM documents WHERE added <= ? AND coalesce(removed > ?, 1) AND {text}"
        passing = np.zeros(len(snapshot.live), np.bool_)
        with _storage(self.path):
            generation = snapshot.generation
            passing[_numbers(self._connection().execute(query, [generation, generation, *values]))] = True
        return passing

    def documents(self, numbers: Iterable[int]) -> dict[int, Document]:
        """Return documents by number, also those that are gone but not yet compacted away."""
        wanted = [int(number) for number in numbers]
        few = len(wanted) <= _FEW  # faster than a list of JSON
        among = ", ".join("?" * len(wanted)) if few else "SELECT value FROM json_each(?)"
        query = f"SELECT {_COLUMNS} FROM documents WHERE number IN ({among})"
        return {row[0]: _document(row) for row in self.rows(query, wanted if few else [json.dumps(wanted)])}

    def by_id(self, ids: Iterable[str]) -> dict[str, tuple[int, str]]:
        """Return number and digest of those ids that are there now."""
        query = (
            "SELECT id, number, digest FROM documents WHERE removed IS NULL AND id IN (SELECT value FROM json_each(?))"
        )
        return {name: (number, digest) for name, number, digest in self.rows(query, [json.dumps([*ids])])}

    def scan(self, *, batch: int = 1000) -> Iterator[list[tuple[int, Document]]]:
        """Walk over all documents that are there, by number, in batches."""
        last = -1
        query = f"SELECT {_COLUMNS} FROM documents WHERE number > ? AND removed IS NULL ORDER BY number LIMIT ?"
        while found := self.rows(query, [last, batch]):
            yield [(row[0], _document(row)) for row in found]
            last = found[-1][0]

    def edges(self, entities: Iterable[str], snapshot: Snapshot, *, limit: int = 1000) -> list[tuple[Edge, int]]:
        """Return the edges at entities, in either direction, with the number of their evidence; heaviest first."""
        query = """
            SELECT head, relation, tail, documents.id, weight, edges.number FROM edges
            JOIN documents ON documents.number = edges.number
            WHERE (head IN (SELECT value FROM json_each(?1)) OR tail IN (SELECT value FROM json_each(?1)))
            AND added <= ?2 AND coalesce(removed > ?2, 1)
            ORDER BY weight DESC, edges.rowid LIMIT ?3"""
        found = self.rows(query, [json.dumps([*entities]), snapshot.generation, limit])
        return [
            (Edge(head, relation, tail, name, weight), number) for head, relation, tail, name, weight, number in found
        ]

    def reserve(self, count: int) -> int:
        """Take `count` numbers and return the first; they are never given out again, whatever happens."""
        database = self._connection()
        with _storage(self.path):
            database.execute("BEGIN IMMEDIATE")
            first = database.execute("SELECT value FROM meta WHERE key = 'next'").fetchone()[0]
            database.execute("UPDATE meta SET value = ? WHERE key = 'next'", (first + count,))
            database.execute("COMMIT")
        return int(first)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Write in one transaction: everything within the block, or nothing; the generation rises by one."""
        database = self._connection()
        with _storage(self.path):
            database.execute("BEGIN IMMEDIATE")
            try:
                generation = database.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()[0] + 1
                database.execute("UPDATE meta SET value = ? WHERE key = 'generation'", (generation,))
                yield Transaction(database, generation)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise


class Transaction:
    """What can be changed in a commit."""

    def __init__(self, database: sqlite3.Connection, generation: int) -> None:
        self._database, self.generation = database, generation

    def set(self, **facts: object) -> None:
        """Set facts of the index."""
        self._database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(facts.items()))

    def remove(self, numbers: Iterable[int]) -> None:
        """Let documents go."""
        values = [(self.generation, int(number)) for number in numbers]
        self._database.executemany("UPDATE documents SET removed = ? WHERE number = ? AND removed IS NULL", values)

    def insert(self, documents: Iterable[tuple[int, Document]]) -> None:
        """Add documents with their numbers."""
        rows = (_row(number, document, self.generation) for number, document in documents)
        self._database.executemany(f"INSERT INTO documents VALUES ({', '.join('?' * 11)})", rows)

    def link(self, edges: Iterable[Edge]) -> None:
        """Add edges. Raises DataError for edges whose document is not there."""
        for edge in edges:
            found = self._database.execute(
                "INSERT INTO edges SELECT ?, ?, ?, ?, number FROM documents WHERE id = ? AND removed IS NULL",
                (edge.head, edge.relation, edge.tail, edge.weight, edge.document),
            )
            if not found.rowcount:
                text = f"edge {edge.head} -{edge.relation}-> {edge.tail}"
                raise DataError(f"{text}: its document {edge.document!r} is not in the index")

    def add_segment(self, name: str, space: str, rows: int, files: Mapping[str, Any]) -> None:
        """Make a written segment part of the index."""
        values = (name, space, rows, json.dumps(files), self.generation)
        self._database.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, NULL)", values)

    def retire(self, names: Iterable[str]) -> None:
        """Take segments out of the index."""
        self._database.executemany("DELETE FROM segments WHERE name = ?", [(name,) for name in names])

    def purge(self) -> int:
        """Delete for good what is gone, and return how many documents that were."""
        gone = "(SELECT number FROM documents WHERE removed IS NOT NULL)"
        self._database.execute(f"DELETE FROM edges WHERE number IN {gone}")
        count = self._database.execute("DELETE FROM documents WHERE removed IS NOT NULL").rowcount
        self.set(compacted=self.generation)
        return int(count)


def _numbers(rows: Iterable[tuple[int]]) -> NDArray[np.int64]:
    return np.fromiter((row[0] for row in rows), np.int64)


def _row(number: int, document: Document, generation: int) -> tuple[object, ...]:
    plain = document.to_dict()
    parts = json.dumps(plain["parts"], ensure_ascii=False) if "parts" in plain else None
    fields = {key: value for key, value in plain.get("fields", {}).items() if value is not None}
    return (
        number,
        document.id,
        document.parent,
        document.title,
        document.source,
        plain.get("text"),
        parts,
        json.dumps(fields, ensure_ascii=False),
        document.digest,
        generation,
        None,
    )


def _document(row: Sequence[Any]) -> Document:
    _, name, parent, title, source, text, parts, fields = row
    content = text if parts is None else tuple(Part.from_dict(part) for part in json.loads(parts))
    return Document(name, content, title, json.loads(fields), parent, source)


class _storage:
    """Say in our words what SQLite and the disk complain of; contextlib's own would cost more than many a query."""

    __slots__ = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            return
        if isinstance(error, sqlite3.DatabaseError):
            raise _explained(self.path, error) from error
        if isinstance(error, OSError):
            raise storage_error(self.path, error) from error


def _explained(path: Path, error: sqlite3.DatabaseError) -> Exception:
    text = str(error)
    if not isinstance(error, sqlite3.OperationalError):
        return VerificationError(f"{path}: damaged ({error}); restore it, or index again")
    if "locked" in text:
        return StorageError(f"{path}: another process has been writing for {_WAIT:g} s; try again")
    if "full" in text:
        return StorageError(f"{path}: the disk is full; the last commit stands: free some space")
    if "unable to open" in text or "no such table" in text:
        return VerificationError(f"{path}: missing, or no table of an index ({text})")
    return StorageError(f"{path}: {text}; the last commit stands")
