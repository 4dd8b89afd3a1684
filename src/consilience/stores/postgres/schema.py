"""The tables of an index: a schema of a database, with one row that says what the index is and where it stands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import errors, sql

from consilience.errors import OutputError, Problems, RequestError, did_you_mean
from consilience.stores.postgres.address import Address
from consilience.stores.postgres.connection import Connection, connect, translated
from consilience.stores.protocol import VectorSpace

__all__ = ["KINDS", "Described", "check_spaces", "describe", "has_index", "make_schema", "vector_table"]

KINDS = frozenset({"dense"})
_VERSION = 1
_MOST_DIMENSIONS = 16_000  # of pgvector
_IN_PLACE = 2000  # dimensions that fit into a page with the rest of the row: no detour when they are read

# The words of a document that is gone are NULL: what is searched for is not there. `length` is its number of words, and
# `rarity` says how many documents have a word.
_TABLES = """
CREATE TABLE consilience(
  version int NOT NULL, generation bigint NOT NULL, next bigint NOT NULL, documents bigint NOT NULL,
  words bigint NOT NULL, language text, spaces json NOT NULL, facts json NOT NULL, approximate jsonb NOT NULL);
CREATE TABLE documents(
  number bigint PRIMARY KEY, id text COLLATE "C" NOT NULL, parent text COLLATE "C", title text COLLATE "C" NOT NULL,
  source text COLLATE "C", text text, parts json, fields jsonb NOT NULL, digest text NOT NULL, added bigint NOT NULL,
  removed bigint, words tsvector, length integer NOT NULL);
CREATE UNIQUE INDEX live_ids ON documents(id) WHERE removed IS NULL;
CREATE INDEX parents ON documents USING hash(parent) WHERE parent IS NOT NULL;
CREATE INDEX gone ON documents(removed) WHERE removed IS NOT NULL;
CREATE INDEX words ON documents USING gin(words);
CREATE INDEX fields ON documents USING gin(fields jsonb_path_ops) WHERE removed IS NULL;
CREATE TABLE rarity(word text COLLATE "C" PRIMARY KEY, documents bigint NOT NULL) WITH (fillfactor = 70);
CREATE TABLE edges(
  place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, head text COLLATE "C" NOT NULL, relation text NOT NULL,
  tail text COLLATE "C" NOT NULL, weight float8 NOT NULL, number bigint NOT NULL REFERENCES documents);
CREATE INDEX heads ON edges USING hash(head);
CREATE INDEX tails ON edges USING hash(tail);
CREATE INDEX evidence ON edges(number);
"""


@dataclass(frozen=True)
class Described:
    """What an index is: its spaces, the language of its words, what is kept beside it."""

    spaces: Mapping[str, VectorSpace]
    language: str | None
    facts: Mapping[str, Any]


def vector_table(place: int) -> str:
    """Return the name of the table with the vectors of the space that is at a place in the list of spaces."""
    return f"vectors_{place}"


def check_spaces(spaces: Sequence[VectorSpace]) -> None:
    """Report spaces that this server cannot hold. Raises RequestError."""
    problems = Problems()
    for space in spaces:
        problems.extend(space.problems())
        kind = getattr(space, "kind", "dense")
        if kind not in KINDS:
            problems.add(
                f"space {space.name!r} is of kind {kind!r}; indexes in PostgreSQL hold {', '.join(sorted(KINDS))} "
                "vectors: keep this one in a folder"
            )
        if space.dimension > _MOST_DIMENSIONS:
            problems.add(f"space {space.name!r}: {space.dimension} dimensions; pgvector holds {_MOST_DIMENSIONS}")
    names = [space.name for space in spaces]
    problems.extend(f"two spaces are called {name!r}" for name in names if names.count(name) > 1)
    problems.raise_if_any(RequestError, "index")


def make_schema(
    address: Address, name: str, spaces: Sequence[VectorSpace], language: str | None, facts: Mapping[str, Any]
) -> None:
    """Make the tables of an empty index, all or none.

    Raises OutputError where there is such a schema, RequestError where the extension is missing or may not be made.
    """
    with connect(address, write=True) as connection, translated(f"{address}: index {name!r}"):
        encoding = connection.execute("SELECT current_setting('server_encoding')").fetchone()
        if encoding != ("UTF8",):
            raise RequestError(f"{address}: texts are kept as {encoding and encoding[0]}; make a database in UTF8")
        kind = _vector_type(connection, address) if spaces else ""
        with connection.transaction():
            try:
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
            except errors.DuplicateSchema:
                raise OutputError(
                    f"{address}: there is a schema {name!r} already; open it, or choose another name"
                ) from None
            connection.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(name)))
            connection.execute(_TABLES)
            for place, space in enumerate(spaces):
                table, column = vector_table(place), f"vector {kind}({int(space.dimension)}) NOT NULL"
                connection.execute(f"CREATE TABLE {table}(number bigint PRIMARY KEY, {column})".encode())
                if space.dimension <= _IN_PLACE:
                    connection.execute(f"ALTER TABLE {table} ALTER COLUMN vector SET STORAGE PLAIN".encode())
            described = json.dumps([vars(space) for space in spaces])
            connection.execute(
                "INSERT INTO consilience VALUES (%s, 0, 0, 0, 0, %s, %s, %s, '{}')",
                [_VERSION, language, described, json.dumps(dict(facts))],
            )


def _vector_type(connection: Connection, address: Address) -> str:
    """Return the name of pgvector's type with its schema; the extension is made where it is not there."""
    query = "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'"
    try:
        if not connection.execute(query).fetchone():
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        row = connection.execute(query).fetchone()
        return f"{row[0] if row else 'public'}.vector"
    except (errors.FeatureNotSupported, errors.UndefinedFile):
        raise RequestError(
            f"{address}: the server lacks the extension pgvector; install it there (https://github.com/pgvector/"
            "pgvector), or make an index without spaces"
        ) from None
    except errors.InsufficientPrivilege:
        raise RequestError(
            f"{address}: the extension pgvector is not in this database, and this user may not put it there; let an "
            "administrator run CREATE EXTENSION vector"
        ) from None


def _schemas(connection: Connection) -> dict[str, bool]:
    """Return all schemas, and which of them are indexes."""
    query = """
        SELECT nspname, EXISTS (SELECT FROM pg_class WHERE relnamespace = schema.oid AND relname = 'consilience')
        FROM pg_namespace AS schema"""
    return dict(connection.execute(query).fetchall())


def has_index(address: Address, name: str) -> bool:
    """Whether there is an index of this name. Raises RequestError where the server cannot be asked."""
    with connect(address) as connection, translated(f"{address}: index {name!r}"):
        return _schemas(connection).get(name, False)


def describe(connection: Connection, address: Address, name: str) -> Described:
    """Read what an index is. Raises RequestError where there is none, or one of another version."""
    found = _schemas(connection)
    if not found.get(name):
        what = "a schema of something else" if name in found else "no index"
        raise RequestError(f"{address}: {what}: {name!r}{did_you_mean(name, [n for n, own in found.items() if own])}")
    own = sql.Identifier(name)
    version = connection.execute(sql.SQL("SELECT version FROM {}.consilience").format(own)).fetchone()
    if version != (_VERSION,):
        raise RequestError(
            f"{address}: index {name!r} is of version {version[0] if version else 'none'}, this program reads "
            f"{_VERSION}; use the program that made it, or index again"
        )
    row = connection.execute("SELECT spaces, language, facts FROM consilience").fetchone()
    spaces, language, facts = row or ([], None, {})
    described = Described({one["name"]: VectorSpace(**one) for one in spaces}, language, facts)
    if spaces and not connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
        raise RequestError(f"{address}: the extension pgvector is gone from this database; CREATE EXTENSION vector")
    return described
