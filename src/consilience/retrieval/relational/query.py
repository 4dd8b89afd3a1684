"""Questions to rows in a small safe language: `average(year) from films where genres = 'Drama' group by country`.

    query     := what "from" TABLE ["join" REFERENCE] ["where" FILTER] ["group by" COLUMN]
                 ["order by" COLUMN ["desc"]] ["limit" NUMBER]
    what      := "rows" | "count" | ("count" | "sum" | "average" | "min" | "max") "(" COLUMN ")"

FILTER is the filter language of the stores. Names are between backticks where they are not plain. Nothing is written
and no SQL is put together: the stores' own filter finds the rows, and what is left is arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from consilience.data.documents import Document, FieldValue, Scalar
from consilience.errors import RequestError, did_you_mean
from consilience.retrieval.relational.schema import table_of
from consilience.stores.where import And, Compare, Filter, Or, Where, matches, parse_where

if TYPE_CHECKING:
    from consilience.retrieval.index import Index

__all__ = ["Aggregate", "RowAnswer", "TableQuery", "of_table", "parse_query", "run_query"]

Aggregate = Literal["rows", "count", "sum", "average", "min", "max"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)

_NAME = r"(?:`[^`]+`|[\w.#/-]+)"
_QUERY = re.compile(
    rf"\s*(?P<what>\w+)\s*(?:\(\s*(?P<column>{_NAME})\s*\))?\s+from\s+(?P<table>{_NAME})"
    rf"(?:\s+join\s+(?P<join>{_NAME}))?(?:\s+where\s+(?P<where>.+?))?(?:\s+group\s+by\s+(?P<group>{_NAME}))?"
    rf"(?:\s+order\s+by\s+(?P<order>{_NAME})(?:\s+(?P<way>asc|desc))?)?(?:\s+limit\s+(?P<limit>\d+))?\s*",
    re.IGNORECASE | re.DOTALL,
)
_AT_ONCE, _MOST = 2_000, 100_000


@dataclass(frozen=True)
class TableQuery:
    """A question to the rows of one table; see `parse_query` for the text form.

    what: the rows, or a number of them. column: of sum, average, min, max; of count, how many rows have it. join: the
    reference whose row's fields are there too, as REFERENCE.COLUMN.
    """

    table: str
    what: Aggregate = "rows"
    column: str | None = None
    where: Filter | None = None
    join: str | None = None
    group: str | None = None
    order: str | None = None
    descending: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class RowAnswer:
    """What the rows say: the rows themselves (as many as were asked for), and values by group ("" without groups)."""

    query: TableQuery
    rows: tuple[Document, ...] = field(repr=False)
    values: dict[str, float | int | None]
    matched: int

    def as_text(self) -> str:
        """Return the values, or the rows, a line each: evidence that a person or a model reads."""
        if self.query.what != "rows":
            named = self.query.what + (f" of {self.query.column}" if self.query.column else "")
            return "\n".join(
                f"{named} in {self.query.table}{f' ({group})' if group else ''}: {_shown(value)}"
                for group, value in self.values.items()
            )
        return "\n".join(
            f"{row.id}: " + "; ".join(f"{key} = {_shown(value)}" for key, value in _fields(row).items())
            for row in self.rows
        )


def parse_query(text: str) -> TableQuery:
    """Read a query from its text form.

    >>> query = parse_query("average(year) from films where genres = 'Drama' group by country limit 5")
    >>> query.what, query.column, query.group, query.limit
    ('average', 'year', 'country', 5)

    Raises RequestError saying what is expected.
    """
    found = _QUERY.fullmatch(text)
    if found is None:
        raise RequestError(
            f"query {text!r}: write WHAT from TABLE [join REFERENCE] [where FILTER] [group by COLUMN] "
            "[order by COLUMN [desc]] [limit NUMBER]"
        )
    what = found["what"].lower()
    if what not in AGGREGATES:
        raise RequestError(f"query {text!r}: {what!r} is unknown{did_you_mean(what, AGGREGATES)}")
    if what in ("sum", "average", "min", "max") and found["column"] is None:
        raise RequestError(f"query {text!r}: {what} of which column? write {what}(COLUMN)")
    if what == "rows" and (found["column"] or found["group"]):
        raise RequestError(f"query {text!r}: rows have no column and no groups; take count, sum, average, min or max")
    name = {key: _plain(found[key]) for key in ("column", "table", "join", "group", "order")}
    return TableQuery(
        str(name["table"]),
        next(one for one in AGGREGATES if one == what),
        name["column"],
        None if found["where"] is None else parse_where(found["where"]),
        name["join"],
        name["group"],
        name["order"],
        (found["way"] or "").lower() == "desc",
        None if found["limit"] is None else int(found["limit"]),
    )


def run_query(
    index: Index, query: TableQuery | str, *, where: Where | None = None, limit: int = 100, most: int = _MOST
) -> RowAnswer:
    """Answer a query from the rows of an index.

    >>> import tempfile
    >>> from consilience.retrieval.index import Index
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> years = {"a": 1999, "b": 2001, "c": 2004}
    >>> _ = index.add(Document(f"f.csv#{n}", n, fields={"year": y}, source="f.csv") for n, y in years.items())
    >>> run_query(index, "average(year) from f.csv where year > 2000").values
    {'': 2002.5}
    >>> run_query(index, "rows from f.csv order by year desc limit 1").rows[0].id
    'f.csv#c'

    where: another filter that has to hold, such as rights. limit: rows that are given back where the query does not
    say. Rows without the column count nothing. Raises RequestError for more than `most` rows to read, which a filter
    makes fewer.
    """
    asked = parse_query(query) if isinstance(query, str) else query
    stores = index.stores
    own = None if asked.join else asked.where
    filters = [one for one in (own, None if where is None else parse_where(where), of_table(asked.table)) if one]
    numbers = stores.passing(filters[0] if len(filters) == 1 else And(tuple(filters))).tolist()
    if len(numbers) > most:
        raise RequestError(f"{len(numbers)} rows of {asked.table!r} to read, {most} at most; narrow the filter")
    rows: list[Document] = []
    for start in range(0, len(numbers), _AT_ONCE):
        found = stores.documents(numbers[start : start + _AT_ONCE])
        rows += [found[n] for n in numbers[start : start + _AT_ONCE] if table_of(found[n]) == asked.table]
    if asked.join:
        rows = _joined(index, rows, asked.join)
        rows = [row for row in rows if asked.where is None or matches(asked.where, row)]
    matched = len(rows)
    if asked.order is not None:
        kept = [(value, row) for row in rows if (value := _sortable(row, asked.order)) is not None]
        rows = [row for _, row in sorted(kept, key=lambda pair: pair[0], reverse=asked.descending)]
    if asked.what == "rows":
        return RowAnswer(asked, tuple(rows[: limit if asked.limit is None else asked.limit]), {}, matched)
    values = _aggregated(asked, rows)
    if asked.limit is not None:
        values = dict(list(values.items())[: asked.limit])
    return RowAnswer(asked, tuple(rows[:limit]), values, matched)


def of_table(table: str) -> Or:
    """Return a filter that the rows of a table pass: by the field `table` of databases, or by their file.

    >>> of_table("films").parts[0]
    Compare(field='table', operator='=', values=('films',))
    """
    return Or((Compare("table", "=", (table,)), Compare("source", "=", (table,))))


def _aggregated(query: TableQuery, rows: Sequence[Document]) -> dict[str, float | int | None]:
    groups: dict[str, list[Document]] = {} if query.group else {"": []}
    for row in rows:
        names = [_shown(one) for one in _values(row, query.group)] if query.group else [""]
        for name in names:
            groups.setdefault(name, []).append(row)
    found = {name: _number(query, own) for name, own in groups.items()}
    return dict(sorted(found.items(), key=lambda item: (-(item[1] or 0), item[0]))) if query.group else found


def _number(query: TableQuery, rows: Sequence[Document]) -> float | int | None:
    if query.column is None:
        return len(rows)
    values = [one for row in rows for one in _values(row, query.column)]
    if query.what == "count":
        return sum(bool(_values(row, query.column)) for row in rows)
    numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    if not numbers:
        return None
    if query.what == "average":
        return sum(numbers) / len(numbers)
    if query.what == "sum":
        return sum(numbers)
    return min(numbers) if query.what == "min" else max(numbers)


def _joined(index: Index, rows: Sequence[Document], reference: str) -> list[Document]:
    """Return rows with the fields of the row that each refers to."""
    targets: dict[int, str] = {}
    for place, row in enumerate(rows):
        for text in _values(row, "references"):
            column, arrow, target = str(text).partition(" -> ")
            if arrow and column == reference:
                targets[place] = target
    if rows and not targets:
        raise RequestError(f"no row refers to others by {reference!r}; references are declared by foreign keys")
    numbers = index.stores.numbers(set(targets.values()))
    held = index.stores.documents(numbers.values())
    found = []
    for place, row in enumerate(rows):
        number = numbers.get(targets.get(place, ""))
        if number is not None:
            others = {f"{reference}.{key}": value for key, value in _fields(held[number]).items()}
            fields = {**row.fields, **others}
            found.append(Document(row.id, row.content, row.title, fields, row.parent, row.source))
    return found


def _fields(row: Document) -> dict[str, FieldValue]:
    kept = {key: value for key, value in row.fields.items() if key not in ("table", "references")}
    return {**({"title": row.title} if row.title else {}), **kept}


def _values(row: Document, column: str | None) -> tuple[Scalar, ...]:
    value = row.title or None if column == "title" else row.fields.get(column or "")
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _sortable(row: Document, column: str) -> tuple[int, float | str] | None:
    values = _values(row, column)
    if not values:
        return None
    first = values[0]
    return (0, float(first)) if isinstance(first, int | float) else (1, str(first))


def _plain(name: str | None) -> str | None:
    return None if name is None else name.strip("`")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
