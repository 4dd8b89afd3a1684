"""Connections to a server: opened when they are needed, used again, and what goes wrong with them said in our words."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from consilience.errors import ConsilienceError, MissingExtraError, RequestError, StorageError, VerificationError
from consilience.stores.postgres.address import Address

try:
    import psycopg
    from pgvector.psycopg import register_vector
    from psycopg import errors, sql
except ImportError as problem:
    raise MissingExtraError(str(problem.name or "psycopg").partition(".")[0], "postgres") from problem

__all__ = ["Connection", "Pool", "connect", "translated"]

Connection = psycopg.Connection[tuple[Any, ...]]

_WAIT = 10  # seconds for a server to answer
_MOST = 8  # connections for reading at once; further searches wait for one
_WRITING = """
SET default_transaction_isolation = 'read committed';
SET default_transaction_read_only = off;
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""  # an acknowledged commit is on disk, also where the server is set up to answer before
# of approximate indexes: how many candidates a search looks at, and that it goes on until there are k
_SEARCHING = """
SET hnsw.ef_search = 200; SET hnsw.iterative_scan = strict_order;
SET ivfflat.probes = 20; SET ivfflat.iterative_scan = relaxed_order
"""
_READING = "SET default_transaction_isolation = 'repeatable read'; SET default_transaction_read_only = on"


def connect(address: Address, schema: str | None = None, *, write: bool = False) -> Connection:
    """Open a connection, with the tables of a schema in sight; transactions for reading see one state and write none.

    Raises RequestError saying what was wrong with the server, the user or the database, and what to do.
    """
    name = f"consilience, process {os.getpid()} on {socket.gethostname()}"[:60]
    options: dict[str, Any] = {"connect_timeout": _WAIT, **address.parameters, "application_name": name}
    try:
        found: Connection = psycopg.connect(**options, autocommit=True)
    except psycopg.Error as error:
        raise _refused(address, str(error)) from None
    try:
        with translated(str(address)):
            found.execute(_WRITING if write else _READING)
            if schema is not None:
                _see(found, schema)
    except BaseException:
        found.close()
        raise
    return found


def _see(connection: Connection, schema: str) -> None:
    """Let names be those of a schema, and of the one that pgvector's types are in."""
    row = connection.execute(
        "SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'"
    ).fetchone()
    places = [schema, *(row or ())]
    connection.execute(sql.SQL("SET search_path = {}").format(sql.SQL(", ").join(map(sql.Identifier, places))))
    if row:
        connection.execute(_SEARCHING)
        register_vector(connection)


def _refused(address: Address, text: str) -> RequestError:
    """Say why no connection came about; libpq has no codes for this, only texts."""
    reasons = {
        "pg_hba": "let pg_hba.conf of the server accept this user from here",
        "password": "give the right user and password (in the address, PGPASSWORD or ~/.pgpass)",
        "database": "make the database with `createdb`, or name another",
        "role": "name a user that the server knows",
        "too many clients": "wait, or raise max_connections of the server",
        "timeout": f"no answer within {_WAIT} s; check host, port and firewall",
    }
    advice = next((todo for word, todo in reasons.items() if word in text), "check that the server runs there")
    lines = address.without_password(" ".join(text.split()))
    return RequestError(f"{address}: cannot connect ({lines}); {advice}")


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Say in our words what PostgreSQL complains of."""
    try:
        yield
    except psycopg.Error as error:
        raise _translation(where, error) from error


def _translation(where: str, error: psycopg.Error) -> ConsilienceError:
    text = " ".join((error.diag.message_primary or str(error)).split())
    if isinstance(error, errors.InsufficientPrivilege):
        return RequestError(f"{where}: {text}; let the owner GRANT it, or use another user")
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return RequestError(f"{where}: {text}; this server or connection only reads: use the primary server")
    if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn | errors.InvalidSchemaName):
        return VerificationError(f"{where}: {text}: a part of the index is gone; restore it, or index again")
    if isinstance(error, errors.DataCorrupted | errors.IndexCorrupted):
        return VerificationError(f"{where}: damaged ({text}); restore it, or index again")
    if isinstance(error, errors.DiskFull):
        return StorageError(f"{where}: the server's disk is full; the last commit stands: free some space")
    lost = error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and lost:
        return StorageError(f"{where}: the connection is lost ({text}); the last commit stands: open the index again")
    return StorageError(f"{where}: {text}; the last commit stands")


class Pool:
    """Connections for reading, shared by threads; at most a few at once."""

    def __init__(self, make: Callable[[], Connection]) -> None:
        self._make, self._closed = make, False
        self._free: list[Connection] = []
        self._lock, self._room = threading.Lock(), threading.BoundedSemaphore(_MOST)

    @contextmanager
    def transaction(self, where: str) -> Iterator[Connection]:
        """Give a connection in a transaction, which sees one state from its first query on."""
        with self._room:
            connection = self._take(where)
            try:
                with translated(where), connection.transaction():
                    yield connection
            finally:
                self._give(connection)

    def _take(self, where: str) -> Connection:
        with self._lock:
            if self._closed:
                raise RequestError(f"{where}: the index was closed; open it again")
            if self._free:
                return self._free.pop()
        return self._make()

    def _give(self, connection: Connection) -> None:
        with self._lock:
            if connection.closed:
                # the server has gone, or was started anew: the others are as good as lost
                idle, self._free = self._free, []
            elif self._closed:
                idle = [connection]
            else:
                idle = []
                self._free.append(connection)
        for one in idle:
            one.close()

    def close(self) -> None:
        """Close the connections; those in use when they are given back."""
        with self._lock:
            self._closed, idle, self._free = True, self._free, []
        for one in idle:
            one.close()
