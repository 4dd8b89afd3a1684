"""Tables of a database server (PostgreSQL, MySQL, ... by SQLAlchemy): every row is a document, only ever read.

The address is SQLAlchemy's, `DIALECT://USER:PASSWORD@HOST/DATABASE`; `table` (any number of times) and `schema` in its
query are ours. SQLAlchemy is in the extra `sql`; the driver of a dialect is for whoever asks to install.
"""

from __future__ import annotations

import decimal
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consilience.data.ingestion.readers.protocol import Failed, Item, Notice
from consilience.data.ingestion.readers.tables import Table, row_documents
from consilience.errors import DataError, MissingExtraError, Problems, RequestError, did_you_mean

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine, Inspector

__all__ = ["Database", "is_database"]

_AT_ONCE = 1000  # rows that are held
_OWN = ("table", "schema")
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}  # the driver of our own extra


def is_database(path: object) -> bool:
    """Whether a path is the address of a database server (SQLite's files are read without one).

    >>> is_database("postgresql://localhost/films"), is_database("sqlite:///films.db"), is_database("notes")
    (True, False, False)
    """
    scheme, mark, _ = str(path).partition("://")
    return bool(mark) and scheme.replace("+", "").isalnum() and scheme != "sqlite"


@dataclass
class Database:
    """The tables of a database.

    >>> import sqlite3, tempfile
    >>> place = tempfile.mkdtemp() + "/shop.db"
    >>> with sqlite3.connect(place) as made:
    ...     _ = made.execute("CREATE TABLE films(id INTEGER PRIMARY KEY, title TEXT, year INTEGER)")
    ...     _ = made.execute("INSERT INTO films VALUES (1, 'Heat', 1995)")
    >>> database = Database.open(f"sqlite+pysqlite:///{place}?table=films")
    >>> [(row.id, row.title, row.fields["year"]) for row in database.read()]
    [('shop.db#films.1', 'Heat', 1995)]

    name: of the database, with which ids begin. shown: the address without its password.
    """

    name: str
    shown: str
    engine: Engine = field(repr=False)
    tables: tuple[str, ...]
    schema: str | None = None

    @classmethod
    def open(cls, address: str) -> Database:
        """Connect, and look whether the tables are there.

        Raises MissingExtraError, RequestError for what is no address, DataError where nobody answers or naming tables
        that are not there.
        """
        try:
            import sqlalchemy as sql
        except ImportError:
            raise MissingExtraError("sqlalchemy", "sql") from None
        url = _url(address)
        own = {key: (value,) if isinstance(value, str) else value for key, value in url.query.items() if key in _OWN}
        url = url.difference_update_query(_OWN)
        shown = url.render_as_string(hide_password=True)
        try:
            engine = sql.create_engine(url, pool_pre_ping=False)
        except ImportError as error:
            raise RequestError(f"{shown}: its driver {error.name} is not installed; install it with pip") from None
        except sql.exc.ArgumentError as error:
            raise RequestError(f"{shown}: {error}") from None
        name = (url.database or url.host or "database").rpartition("/")[2]
        found = cls(name, shown, engine, tuple(dict.fromkeys(own.get("table", ()))), own.get("schema", (None,))[0])
        known = found._tables()
        problems = Problems()
        problems.extend(f"no table {t!r}{did_you_mean(t, known)}" for t in found.tables if t not in known)
        problems.raise_if_any(DataError, shown)
        found.tables = found.tables or tuple(known)
        return found

    def read(self) -> Iterator[Item]:
        """Yield the rows of all tables in one transaction; a table that cannot be read is a failure of its own."""
        import sqlalchemy as sql

        try:
            connection = self.engine.connect()
        except sql.exc.SQLAlchemyError as error:
            raise DataError(f"{self.shown}: {_said(error)}") from None
        with connection:
            for name in self.tables:
                try:
                    table = self._described(sql.inspect(connection), name)
                    for text in table.notices:
                        yield Notice(f"{self.name}#{name}", text)
                    yield from row_documents(table, self._rows(connection, table), self.name)
                except sql.exc.SQLAlchemyError as error:
                    connection.rollback()
                    yield Failed(f"{self.name}#{name}", f"the table cannot be read to its end ({_said(error)})")

    def count(self) -> int:
        """Return how many rows there are; a table that cannot be counted has one."""
        import sqlalchemy as sql

        total = 0
        with self.engine.connect() as connection:
            for name in self.tables:
                try:
                    asked = sql.select(sql.func.count()).select_from(sql.table(name, schema=self.schema))
                    total += int(connection.execute(asked).scalar_one())
                except sql.exc.SQLAlchemyError:
                    connection.rollback()
                    total += 1
        return total

    def _tables(self) -> list[str]:
        import sqlalchemy as sql

        try:
            return sorted(sql.inspect(self.engine).get_table_names(self.schema))
        except sql.exc.SQLAlchemyError as error:
            raise DataError(f"{self.shown}: {_said(error)}") from None

    def _described(self, inspector: Inspector, name: str) -> Table:
        columns = tuple(column["name"] for column in inspector.get_columns(name, self.schema))
        key, notices, foreign = self._key(inspector, name, columns), [], []
        if not key:
            notices.append("it has no primary key: rows are numbered as they come, and may change their ids")
        for found in inspector.get_foreign_keys(name, self.schema):
            target, own, named = found["referred_table"], found["constrained_columns"], found["referred_columns"]
            elsewhere = found.get("referred_schema") not in (None, self.schema)
            theirs = [column["name"] for column in inspector.get_columns(target, found.get("referred_schema"))]
            wanted = () if elsewhere else self._key(inspector, target, theirs)
            if wanted and set(named) == set(wanted):
                foreign.append((tuple(own[named.index(column)] for column in wanted), target))
            else:
                place = f"{target} of another schema" if elsewhere else f"the primary key of {target}"
                notices.append(f"foreign key {', '.join(own)} is not to {place}: no reference is kept")
        return Table(name, columns, key, tuple(foreign), tuple(notices))

    def _key(self, inspector: Inspector, name: str, columns: Any) -> tuple[str, ...]:
        primary = tuple(inspector.get_pk_constraint(name, self.schema)["constrained_columns"])
        return primary or (("id",) if "id" in columns else ())

    def _rows(self, connection: Any, table: Table) -> Iterator[tuple[int, list[object]]]:
        """Yield the rows by their key, some held at once."""
        import sqlalchemy as sql

        shown: list[Any] = [sql.column(name) for name in table.columns]
        asked = sql.select(*shown).select_from(sql.table(table.name, *shown, schema=self.schema))
        asked = asked.order_by(*(sql.column(name) for name in table.key)) if table.key else asked
        streamed = connection.execution_options(stream_results=True, yield_per=_AT_ONCE)
        for place, row in enumerate(streamed.execute(asked), 1):
            yield place, [_plain(value) for value in row]


def _url(address: str) -> URL:
    import sqlalchemy as sql

    scheme, _, rest = address.partition("://")
    try:
        return sql.make_url(f"{_DRIVERS.get(scheme, scheme)}://{rest}")
    except (sql.exc.ArgumentError, ValueError):
        raise RequestError(
            f"this is no address of a database; write {scheme}://USER:PASSWORD@HOST:PORT/DATABASE, with the characters "
            "@ : / ? # % of a password as %40 %3A %2F %3F %23 %25 (it is not repeated here: it may hold a password)"
        ) from None


def _said(error: Exception) -> str:
    """Return the first line of what a driver says, without the statement."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _plain(value: object) -> object:
    """Return a value of a driver as rows of files have it."""
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    if isinstance(value, Mapping) or (isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value)):
        return json.dumps(value, ensure_ascii=False, default=str)
    if value is None or isinstance(value, str | bytes | int | float | list | tuple) or hasattr(value, "isoformat"):
        return value
    return str(value)
