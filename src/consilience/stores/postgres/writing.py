"""What a commit changes: documents, words and vectors come by COPY, in the writer's transaction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.data.documents import Document, FieldValue
from consilience.errors import DataError, Problems
from consilience.stores.postgres.connection import Connection
from consilience.stores.postgres.where import exact_number
from consilience.stores.protocol import Batch
from consilience.stores.table import Edge

__all__ = ["Commit", "Counted", "check_storable", "insert", "storable"]

_LONGEST_ID = 2000  # bytes: a unique index holds no longer ones
_MORE = """
INSERT INTO rarity SELECT * FROM unnest(%s::text[], %s::bigint[])
ON CONFLICT (word) DO UPDATE SET documents = rarity.documents + excluded.documents"""
_FEWER = """
UPDATE rarity SET documents = documents - held FROM (
  SELECT lexeme, count(*) AS held FROM documents, unnest(words) WHERE number = ANY(%s) GROUP BY lexeme) AS gone
WHERE word = lexeme"""


def storable(text: str) -> bool:
    """Whether a text can be in a database: it has no zero character and no half of a surrogate pair.

    >>> storable("a"), storable(chr(0))
    (True, False)
    """
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(frozen=True)
class Counted:
    """The words of a document: the different ones, all of them as a tsvector (None: too many), and their number."""

    words: Sequence[str]
    text: str | None
    length: int


def check_storable(batch: Batch, words: Sequence[Counted]) -> None:
    """Report what PostgreSQL does not hold, all at once. Raises DataError."""
    problems = Problems()
    for document, one in zip(batch.documents, words, strict=True):
        if len(document.id.encode()) > _LONGEST_ID:
            problems.add(f"{document.id[:40]!r}...: an id has at most {_LONGEST_ID} bytes")
        if one.text is None:
            problems.add(f"{document.id!r}: its words have more than 1 MB, which PostgreSQL does not hold; cut it")
        for name, value in document.fields.items():
            if isinstance(value, tuple) and not all(storable(item) for item in value if isinstance(item, str)):
                problems.add(f"{document.id!r}: field {name!r} holds a zero character or half of a surrogate pair")
    problems.extend(
        f"edge {edge.head!r} -{edge.relation!r}-> {edge.tail!r}: zero characters or halves of surrogate pairs"
        for edge in batch.edges
        if not all(storable(text) for text in (edge.head, edge.relation, edge.tail, edge.document))
    )
    problems.raise_if_any(DataError, "documents")


class Commit:
    """One transaction of the writer; the generation rises by one."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        row = connection.execute("SELECT generation, next, documents, words FROM consilience FOR UPDATE").fetchone()
        before, self.next, self._documents, self._words = map(int, row or (0, 0, 0, 0))
        self.generation = before + 1

    def finish(self) -> None:
        """Say where the index stands now."""
        self.connection.execute(
            "UPDATE consilience SET generation = %s, next = %s, documents = %s, words = %s",
            [self.generation, self.next, self._documents, self._words],
        )

    def numbers(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the numbers of those ids that are there now."""
        query = "SELECT id, number FROM documents WHERE removed IS NULL AND id = ANY(%s)"
        return dict(self.connection.execute(query, [[*ids]]).fetchall())

    def remove(self, numbers: Iterable[int], tables: Iterable[str]) -> None:
        """Let documents go, with their words, vectors and edges."""
        gone = [*numbers]
        if not gone:
            return
        self.connection.execute(_FEWER, [gone])
        query = "UPDATE documents SET removed = %s, words = NULL WHERE number = ANY(%s) RETURNING length"
        lengths = [row[0] for row in self.connection.execute(query, [self.generation, gone])]
        self._documents -= len(lengths)
        self._words -= sum(lengths)
        for table in ("edges", *tables):
            self.connection.execute(f"DELETE FROM {table} WHERE number = ANY(%s)".encode(), [gone])

    def came(self, words: Sequence[Counted]) -> int:
        """Count new documents and their words, and return the number of the first."""
        first = self.next
        self.next += len(words)
        self._documents += len(words)
        self._words += sum(one.length for one in words)
        held = Counter(word for one in words for word in one.words)
        self.connection.execute(_MORE, [[*held], [*held.values()]])
        return first

    def link(self, edges: Sequence[Edge]) -> None:
        """Add edges. Raises DataError for edges whose document is not there."""
        if not edges:
            return
        there = self.numbers({edge.document for edge in edges})
        for edge in edges:
            if edge.document not in there:
                text = f"edge {edge.head} -{edge.relation}-> {edge.tail}"
                raise DataError(f"{text}: its document {edge.document!r} is not in the index")
        with self.connection.cursor().copy("COPY edges (head, relation, tail, weight, number) FROM STDIN") as copy:
            for edge in edges:
                copy.write_row((edge.head, edge.relation, edge.tail, float(edge.weight), there[edge.document]))

    def purge(self) -> int:
        """Delete for good what is gone, and return how many documents that were."""
        self.connection.execute("DELETE FROM rarity WHERE documents = 0")
        return int(self.connection.execute("DELETE FROM documents WHERE removed IS NOT NULL").rowcount)

    def build(self, table: str, kind: str, lists: int) -> None:
        """Make the approximate index of a table of vectors anew; "none": without one."""
        self.connection.execute(f"DROP INDEX IF EXISTS approximate_{table}".encode())
        if kind != "none":
            options = f" WITH (lists = {lists})" if kind == "ivfflat" else ""
            self.connection.execute(
                f"CREATE INDEX approximate_{table} ON {table} USING {kind} (vector vector_ip_ops){options}".encode()
            )

    def draw(self, table: str, count: int) -> NDArray[np.float32]:
        """Return some of the vectors of a table, always the same."""
        query = f"SELECT vector FROM {table} ORDER BY md5(number::text) LIMIT %s"
        rows = self.connection.execute(query.encode(), [count]).fetchall()
        return np.array([row[0].to_numpy() for row in rows], np.float32)

    def note(self, space: str, facts: Mapping[str, Any] | None) -> None:
        """Keep what is known of an approximate index."""
        self.connection.execute(
            "UPDATE consilience SET approximate = jsonb_strip_nulls("
            "approximate || jsonb_build_object(%(space)s::text, %(facts)s::jsonb))",
            {"space": space, "facts": None if facts is None else json.dumps(facts)},
        )


def insert(
    commit: Commit,
    documents: Sequence[Document],
    words: Sequence[Counted],
    vectors: Mapping[str, NDArray[np.float32]],
) -> None:
    """Add documents with their words, and their vectors by table."""
    if not documents:
        return
    first = commit.came(words)
    columns = "number, id, parent, title, source, text, parts, fields, digest, added, words, length"
    cursor = commit.connection.cursor()
    with cursor.copy(f"COPY documents ({columns}) FROM STDIN".encode()) as copy:
        for number, (document, counted) in enumerate(zip(documents, words, strict=True), first):
            copy.write_row(_row(number, document, counted, commit.generation))
    for table, rows in vectors.items():
        with cursor.copy(f"COPY {table} (number, vector) FROM STDIN (FORMAT binary)".encode()) as copy:
            copy.set_types(["int8", "vector"])
            for number, row in enumerate(rows, first):
                copy.write_row((number, row))


def _row(number: int, document: Document, counted: Counted, generation: int) -> tuple[object, ...]:
    plain = document.to_dict()
    return (
        number,
        document.id,
        document.parent,
        document.title,
        document.source,
        plain.get("text"),
        json.dumps(plain["parts"]) if "parts" in plain else None,
        _fields(document.fields),
        document.digest,
        generation,
        counted.text,
        counted.length,
    )


def _fields(fields: Mapping[str, FieldValue]) -> str:
    """Return fields as JSON that jsonb, which keeps decimal numbers, gives back as the same numbers."""
    pairs = [f"{json.dumps(name)}: {_json(value)}" for name, value in fields.items() if value is not None]
    return "{" + ", ".join(pairs) + "}"


def _json(value: FieldValue) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_json, value)) + "]"
    return str(exact_number(value)) if isinstance(value, float) else json.dumps(value)
