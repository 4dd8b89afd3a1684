"""The stores of an index in a PostgreSQL server: one schema, whose transactions are the commits.

A document that is replaced or deleted leaves the words, vectors and edges at once, and keeps its row, with the
generation in which it went, until the index is compacted: who has found it before can still read it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.data.documents import Document, Part, check_documents
from consilience.errors import DataError, OutputError, RequestError, did_you_mean
from consilience.stores.postgres.address import Address, check_name
from consilience.stores.postgres.connection import Connection, Pool, connect, translated
from consilience.stores.postgres.schema import KINDS, check_spaces, describe, make_schema, vector_table
from consilience.stores.postgres.search import by_edges, by_text, by_vectors, passing
from consilience.stores.postgres.words import Words, tsvector
from consilience.stores.postgres.writing import Commit, Counted, check_storable, insert, storable
from consilience.stores.protocol import Batch, Changes, VectorSpace, check_batch
from consilience.stores.vectors import Found, check_vectors
from consilience.stores.where import Where, parse_where
from consilience.stores.words import check_language

__all__ = ["PostgresStores"]

_LOCK = 0x636F6E73  # the kind of our advisory locks; the other half of the key is the schema
_TRIES, _PAUSE = 10, 0.1  # seconds: the server may be about to find out that a writer was killed
_COLUMNS = "number, id, parent, title, source, text, parts, fields"
_LISTS = 1000  # rows of a list of an IVFFlat index


class PostgresStores:
    """Documents, full text, vectors and edges in a schema of a database; see `consilience.stores.protocol.Stores`.

    >>> from consilience.stores.protocol import VectorSpace
    >>> PostgresStores.create("postgresql://localhost:1/notes", "manuals", [VectorSpace("plane", 2)])
    Traceback (most recent call last):
    ...
    consilience.errors.RequestError: postgresql://localhost:1/notes: cannot connect (...); check that the server ...

    One session writes (`write=True`), any number read; a reader sees each commit whole, from its next search on.
    Threads share one object. Raises RequestError saying what to do where there is no server, no right to use it, no
    extension, no such index or one of another version, and OutputError naming the process that writes.
    """

    kinds = KINDS

    def __init__(self, url: str, name: str, *, write: bool = False) -> None:
        self._address, self.name = Address.read(url), check_name(name)
        self.place = f"{self._address}: index {name!r}"
        self._pool = Pool(lambda: connect(self._address, name))
        self._writer: Connection | None = None
        self._writing = threading.Lock()
        try:
            with self._pool.transaction(self.place) as connection:
                described = describe(connection, self._address, name)
            self.spaces: Mapping[str, VectorSpace] = described.spaces
            self.language: str | None = described.language
            self.facts: Mapping[str, Any] = described.facts
            self._tables = {space: vector_table(place) for place, space in enumerate(self.spaces)}
            self._words = Words(self.language)
            if write:
                self._writer = connect(self._address, name, write=True)
                self._take_lock(self._writer)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        url: str,
        name: str,
        spaces: Sequence[VectorSpace] = (),
        *,
        language: str | None = "english",
        facts: Mapping[str, Any] | None = None,
    ) -> PostgresStores:
        """Make an empty index in a schema of its own and open it for writing; `facts` are kept beside it.

        Raises OutputError where there is such a schema, RequestError for wrong names, spaces or languages.
        """
        address = Address.read(url)
        check_name(name)
        check_spaces(spaces)
        check_language(language)
        make_schema(address, name, spaces, language, facts or {})
        return cls(url, name, write=True)

    def __enter__(self) -> PostgresStores:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PostgresStores({self.place})"

    def close(self) -> None:
        """Let go of the connections, and with them of the writer's lock."""
        self._pool.close()
        if self._writer is not None:
            self._writer.close()

    def _take_lock(self, connection: Connection) -> None:
        take = "SELECT pg_try_advisory_lock((%s::bigint << 32) | %s::regnamespace::oid::bigint)"
        held = """
            SELECT pid, application_name FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
            WHERE locktype = 'advisory' AND classid = %s AND objid = %s::regnamespace AND objsubid = 1
              AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
        with translated(self.place):
            for _ in range(_TRIES):
                if connection.execute(take, [_LOCK, self.name]).fetchone() == (True,):
                    return
                time.sleep(_PAUSE)
            pid, program = connection.execute(held, [_LOCK, self.name]).fetchone() or ("unknown", None)
        raise OutputError(
            f"{self.place}: {program or 'another session'} (server process {pid}) is writing to this index; wait for "
            "it, or open it for reading"
        )

    def _space(self, name: str) -> VectorSpace:
        if name not in self.spaces:
            raise RequestError(f"space {name!r} is not in this index{did_you_mean(name, self.spaces)}")
        return self.spaces[name]

    def search_text(self, queries: Sequence[str], k: int, *, where: Where | None = None) -> list[Found]:
        """Return the documents that have words of the query, best first, by BM25."""
        _positive(k)
        wanted = None if where is None else parse_where(where)
        with self._pool.transaction(self.place) as connection:
            counted = [self._words.count(query) for query in queries]
            return [by_text(connection, words, k, wanted, self._words.telling(words)) for words in counted]

    def search_vectors(
        self, space: str, queries: NDArray[np.float32], k: int, *, where: Where | None = None, exact: bool = False
    ) -> list[Found]:
        """Return the documents with the largest similarity; queries (queries, dimension).

        Exactly, but for spaces with an approximate index (see `approximate`), unless `exact` or a filter is given.
        """
        asked = self._space(space)
        vectors = check_vectors(queries, asked.dimension, what="queries", cosine=asked.similarity == "cosine")
        wanted = None if where is None else parse_where(where)
        _positive(k)
        with self._pool.transaction(self.place) as connection:
            return by_vectors(connection, self._tables[space], vectors, k, wanted, exact=exact)

    def vectors(self, space: str, numbers: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of documents, (numbers, dimension); 0 for those that are gone."""
        asked, wanted = self._space(space), [int(number) for number in numbers]
        query = f"SELECT number, vector FROM {self._tables[space]} WHERE number = ANY(%s)"
        with self._pool.transaction(self.place) as connection:
            rows = dict(connection.execute(query.encode(), [wanted], binary=True).fetchall())
        found = np.zeros((len(wanted), asked.dimension), np.float32)
        for place, number in enumerate(wanted):
            if number in rows:
                found[place] = rows[number].to_numpy()
        return found

    def search_edges(
        self, entities: Sequence[Sequence[str]], k: int, *, hops: int = 1, where: Where | None = None
    ) -> list[Found]:
        """Return the documents that speak of entities or of what is linked to them, nearest and heaviest first."""
        _positive(k)
        wanted = None if where is None else parse_where(where)
        with self._pool.transaction(self.place) as connection:
            return [by_edges(connection, filter(storable, start), k, hops, wanted) for start in entities]

    def passing(self, where: Where | None = None) -> NDArray[np.int64]:
        """Return the numbers of all documents that a filter lets through, rising."""
        with self._pool.transaction(self.place) as connection:
            return passing(connection, None if where is None else parse_where(where))

    def documents(self, numbers: Iterable[int]) -> dict[int, Document]:
        """Return documents by number, also those that are gone but not yet compacted away."""
        query = f"SELECT {_COLUMNS} FROM documents WHERE number = ANY(%s)"
        return {row[0]: _document(row) for row in self._rows(query, [[int(number) for number in numbers]])}

    def known(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the digests of those ids that are there."""
        query = "SELECT id, digest FROM documents WHERE removed IS NULL AND id = ANY(%s)"
        return dict(self._rows(query, [[*filter(storable, ids)]]))

    def numbers(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the numbers of those ids that are there."""
        query = "SELECT id, number FROM documents WHERE removed IS NULL AND id = ANY(%s)"
        return dict(self._rows(query, [[*filter(storable, ids)]]))

    def generation(self) -> int:
        """Return the number of the last commit."""
        return int(self._rows("SELECT generation FROM consilience")[0][0])

    def has_edges(self) -> bool:
        """Return whether documents speak of any relation."""
        return bool(self._rows("SELECT EXISTS (SELECT 1 FROM edges)")[0][0])

    def __len__(self) -> int:
        return int(self._rows("SELECT documents FROM consilience")[0][0])

    def all_ids(self) -> list[str]:
        """Return the ids of all documents that are there, in the order in which they came."""
        return [row[0] for row in self._rows("SELECT id FROM documents WHERE removed IS NULL ORDER BY number")]

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        with self._pool.transaction(self.place) as connection:
            return connection.execute(query.encode(), values).fetchall()

    @contextmanager
    def _commit(self) -> Iterator[Commit]:
        """Write in one transaction: everything within the block, or nothing."""
        if self._writer is None:
            raise OutputError(f"{self.place}: this index is open for reading; open it with write=True")
        with self._writing, translated(self.place), self._writer.transaction():
            commit = Commit(self._writer)
            yield commit
            commit.finish()

    def write(self, batch: Batch, *, replace: bool) -> Changes:
        """Add documents in one commit; when this returns they are durable.

        Raises DataError for documents that cannot be stored and for ids that are there (without `replace`),
        RequestError for vectors that do not fit, OutputError for an index open for reading, StorageError.
        """
        if self._writer is None:
            raise OutputError(f"{self.place}: this index is open for reading; open it with write=True")
        check_documents(batch.documents)
        check_batch(batch, self.spaces)
        ids = [document.id for document in batch.documents]
        vectors = {
            self._tables[name]: check_vectors(
                batch.vectors[name], space.dimension, what=name, names=ids, cosine=space.similarity == "cosine"
            )
            for name, space in self.spaces.items()
        }
        counts = [self._words.count(document.full_text) for document in batch.documents]
        words = [Counted([*one], tsvector(one), one.total()) for one in counts]
        check_storable(batch, words)
        with self._commit() as commit:
            there = commit.numbers(ids)
            if there and not replace:
                shown = ", ".join(repr(name) for name in list(there)[:5])
                raise DataError(f"{len(there)} ids are in the index already: {shown}; upsert replaces them")
            commit.remove(there.values(), self._tables.values())
            insert(commit, batch.documents, words, vectors)
            commit.link(batch.edges)
        return Changes(commit.generation, len(ids) - len(there), len(there))

    def delete(self, ids: Iterable[str]) -> Changes:
        """Delete documents in one commit. Raises RequestError naming ids that are not there."""
        wanted = dict.fromkeys(ids)
        with self._commit() as commit:
            there = commit.numbers(filter(storable, wanted))
            if lost := [name for name in wanted if name not in there]:
                shown = ", ".join(repr(name) for name in lost[:5])
                raise RequestError(f"{len(lost)} ids are not in the index: {shown}; nothing was deleted")
            commit.remove(there.values(), self._tables.values())
        return Changes(commit.generation, deleted=len(there))

    def compact(self) -> int:
        """Delete for good what was deleted or replaced, free its space, and return how many documents that were."""
        with self._commit() as commit:
            count = commit.purge()
        if self._writer is not None:
            with self._writing, translated(self.place):
                for table in ("documents", "edges", "rarity", "consilience", *self._tables.values()):
                    self._writer.execute(f"VACUUM (ANALYZE) {table}".encode())
        return count

    def approximate(
        self, space: str, kind: Literal["hnsw", "ivfflat", "none"] = "hnsw", *, k: int = 10, sample: int = 100
    ) -> float:
        """Give a space an approximate index (or take it away), and return its recall at `k` against exact search.

        The recall is measured with `sample` of the space's own vectors as queries, and kept (see `stats`). Searches
        without a filter use the index from now on. Raises RequestError for more than 2,000 dimensions.
        """
        table, dimension = self._tables[self._space(space).name], self.spaces[space].dimension
        if kind not in ("hnsw", "ivfflat", "none") or (kind != "none" and dimension > 2000):
            raise RequestError(f"space {space!r}, {dimension} dimensions: {kind!r}; hnsw, ivfflat (to 2,000), none")
        recall = 1.0
        with self._commit() as commit:
            commit.build(table, kind, max(len(self) // _LISTS, 1))
            if kind != "none":
                drawn = commit.draw(table, sample)
                both = [by_vectors(commit.connection, table, drawn, k, None, exact=exact) for exact in (True, False)]
                same = [len(np.intersect1d(a.numbers, b.numbers)) for a, b in zip(*both, strict=True)]
                recall = sum(same) / max(sum(len(one) for one in both[0]), 1)
            commit.note(space, {"kind": kind, "recall": recall, "k": k, "sample": sample} if kind != "none" else None)
        return recall

    def stats(self) -> dict[str, Any]:
        """Return numbers of documents, of edges, of rows that compacting would drop, bytes on disk, the generation."""
        query = """
            SELECT documents, generation, approximate, (SELECT count(*) FROM documents WHERE removed IS NOT NULL),
              (SELECT count(*) FROM edges), (SELECT sum(pg_total_relation_size(oid)) FROM pg_class
              WHERE relnamespace = %s::regnamespace AND relkind = 'r') FROM consilience"""
        documents, generation, approximate, gone, edges, size = self._rows(query, [self.name])[0]
        return {
            "documents": documents,
            "gone": gone,
            "edges": edges,
            "generation": generation,
            "vectors": dict.fromkeys(self.spaces, documents),
            "approximate": approximate,
            "bytes": int(size),
        }


def _document(row: Sequence[Any]) -> Document:
    _, name, parent, title, source, text, parts, fields = row
    content = text if parts is None else tuple(Part.from_dict(part) for part in parts)
    return Document(name, content, title, fields, parent, source)


def _positive(k: int) -> None:
    if k < 1:
        raise RequestError(f"k is {k}; ask for at least 1")
