"""English questions to queries of rows, by rules over the columns, values and numbers that the rows have.

The rules know comparisons ("after 1999", "more than 5", "between 1990 and 1995", "the 1990s"), values of columns, "how
many", "average", "total", superlatives and "per COLUMN". What they do not understand they leave out, and say what they
did understand. Nothing of a question becomes code: only known tables and columns are named, all else are values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consilience.data.ingestion.edges.protocol import normal_entity
from consilience.retrieval.relational.query import Aggregate, TableQuery
from consilience.retrieval.relational.schema import Column, RowTable
from consilience.stores.where import And, Compare, Filter, Not

__all__ = ["Understood", "translate"]

_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')
_WORD = re.compile(r"[^\W_]+(?:['’.&/-][^\W_]+)*")
_LONGEST = 6  # words of a value
_NEAR = 4  # words between a number and the name of its column
_BETWEEN = re.compile(r"\b(?:between|from)\s+(-?\d[\d.,]*)\s+(?:and|to|until)\s+(-?\d[\d.,]*)", re.I)
_DECADE = re.compile(r"\b(?:the\s+)?(\d{3}0)s\b")
_COMPARED = (
    (r"(?:at least|no less than|since|starting in)", ">="),
    (r"(?:at most|no more than|up to|until|through)", "<="),
    (r"(?:more than|greater than|larger than|longer than|over|above|after|later than|beyond)", ">"),
    (r"(?:less than|fewer than|smaller than|shorter than|under|below|before|earlier than|prior to)", "<"),
    (r"(?:in|of|from|exactly|equal to|during|with)", "="),
)
_ONWARDS = re.compile(r"\s+(?:or\s+(?:later|more|newer|above)|onwards?|on)\b", re.I)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?![\w])")
_WHATS: tuple[tuple[str, Aggregate], ...] = (
    (r"\b(?:how many|number of|count(?: of)?)\b", "count"),
    (r"\b(?:average|mean)\b", "average"),
    (r"\b(?:total|sum of|combined)\b", "sum"),
)
_MOST = re.compile(r"\b(?:highest|largest|biggest|greatest|most|maximum|latest|newest|most recent|last)\b", re.I)
_LEAST = re.compile(r"\b(?:lowest|smallest|fewest|least|minimum|oldest|earliest|first)\b", re.I)
_DATED = re.compile(r"\b(?:latest|newest|most recent|last|oldest|earliest|first)\b", re.I)
_GROUPED = re.compile(r"\b(?:per|by|for each|for every|in each|in every|grouped by)\s+([\w.]+)", re.I)
_NEGATED = re.compile(r"\b(?:not|without|except|excluding|no)\s+(?:in\s+|by\s+|with\s+|a\s+|an\s+|the\s+)*$", re.I)
_COMMON = frozenset(
    _WORD.findall(
        "a an the of in on at to for and or with by from is are was were be what which who when where how many much "
        "list show find all any some that this it its per each every first last new not no"
    )
)


@dataclass(frozen=True)
class Understood:
    """A query, and what of the question it was made of; `conditions` of them are filters."""

    query: TableQuery
    parts: tuple[str, ...]
    conditions: int


def translate(
    question: str, tables: Mapping[str, RowTable], *, names: Mapping[str, Sequence[str]] | None = None
) -> Understood | None:
    """Return the query that a question asks, None where nothing in it is about the rows.

    >>> columns = {"year": Column("year", low=1990, high=2020), "genres": Column("genres", {"drama": "Drama"})}
    >>> tables = {"films": RowTable("films", columns, 9)}
    >>> found = translate("How many drama films came out after 2005?", tables)
    >>> found.query.what, found.parts
    ('count', ('films', 'count', 'year > 2005', "genres = 'Drama'"))

    tables: what `read_schema` found. names: other words for tables ("films.csv" -> "movie", "film"). Of several tables
    the one that most of the question is about is taken. Text between double quotes is for other stores.
    """
    text = _QUOTED.sub(lambda found: " " * len(found[0]), question)
    tried = [one for table in tables.values() if (one := _for_table(text, table, (names or {}).get(table.name, ())))]
    return max(tried, key=lambda one: len(one.parts)) if tried else None


def _for_table(text: str, table: RowTable, names: Sequence[str]) -> Understood | None:
    parts: list[str] = []
    taken: list[tuple[int, int]] = []
    if _named(text, table, names):
        parts.append(table.name)
    what: Aggregate = "rows"
    for pattern, one in _WHATS:
        if re.search(pattern, text, re.I):
            what = one
            break
    filters = [*_numbers(text, table, taken), *_texts(text, table, taken)]
    column = _column_after(text, _WHATS[1:], table) if what in ("average", "sum") else None
    if what in ("average", "sum") and column is None:
        what = "rows"
    group = next((name for found in _GROUPED.findall(text) if (name := _column(found, table))), None)
    order, descending = (None, False) if what != "rows" else _order(text, table)
    if what != "rows":
        parts.append(what if column is None else f"{what}({column})")
    parts += [_shown(one) for one in filters]
    if group and what != "rows":
        parts.append(f"group by {group}")
    if order:
        parts.append(f"order by {order}{' desc' if descending else ''}")
    if not filters and not order and not (parts and what != "rows" and (column or parts[0] == table.name)):
        return None
    where = None if not filters else filters[0] if len(filters) == 1 else And(tuple(filters))
    query = TableQuery(
        table.name,
        what,
        column,
        where,
        group=group if what != "rows" else None,
        order=order,
        descending=descending,
    )
    return Understood(query, tuple(parts), len(filters))


def _named(text: str, table: RowTable, names: Sequence[str]) -> bool:
    own = re.split(r"[\W_]+", table.name.rpartition("/")[2].partition(".")[0])
    return any(_word(name, text) for name in (*own, *names) if name)


def _word(name: str, text: str) -> bool:
    stem = re.escape(name[:-1] if name.endswith("s") and len(name) > 3 else name)
    return re.search(rf"\b{stem}(?:s|es)?\b", text, re.I) is not None


def _column(word: str, table: RowTable) -> str | None:
    """Return the column that a word names, in the singular or the plural."""
    plain = word.lower().strip("?.,")
    forms = {
        plain,
        f"{plain}s",
        plain.removesuffix("s"),
        plain.removesuffix("ies") + "y",
        plain.removesuffix("y") + "ies",
    }
    return next((name for name in table.columns if name.lower() in forms), None)


def _column_after(text: str, patterns: Sequence[tuple[str, Aggregate]], table: RowTable) -> str | None:
    for pattern, _ in patterns:
        found = re.search(pattern, text, re.I)
        if found:
            for word in _WORD.findall(text[found.end() :])[:_NEAR]:
                name = _column(word, table)
                if name and table.columns[name].numeric:
                    return name
    return None


def _order(text: str, table: RowTable) -> tuple[str | None, bool]:
    for pattern, descending in ((_MOST, True), (_LEAST, False)):
        for found in pattern.finditer(text):
            for word in _WORD.findall(text[found.end() :])[:_NEAR]:
                name = _column(word, table)
                if name and table.columns[name].numeric:
                    return name, descending
            if _DATED.fullmatch(found[0]):
                dated = [one.name for one in table.numbers() if _is_year(one)]
                if dated:
                    return dated[0], descending
    return None, False


def _is_year(column: Column) -> bool:
    return column.low is not None and column.high is not None and column.low >= 1000 and column.high <= 2200


def _numbers(text: str, table: RowTable, taken: list[tuple[int, int]]) -> list[Filter]:
    found: list[Filter] = []
    for match in _BETWEEN.finditer(text):
        low, high = _value(match[1]), _value(match[2])
        name = _column_of(text, match.span(), (low, high), table)
        if name:
            found += [Compare(name, ">=", (low,)), Compare(name, "<=", (high,))]
            taken.append(match.span())
    for match in _DECADE.finditer(text):
        low = int(match[1])
        name = _column_of(text, match.span(), (low, low + 9), table)
        if name:
            found += [Compare(name, ">=", (low,)), Compare(name, "<=", (low + 9,))]
            taken.append(match.span())
    for match in _NUMBER.finditer(text):
        if any(start <= match.start() < end for start, end in taken):
            continue
        number, before = _value(match[0]), text[: match.start()]
        name = _column_of(text, match.span(), (number,), table)
        if name is None:
            continue
        operator = _sign(before)
        if operator == "=" and _ONWARDS.match(text, match.end()):
            operator = ">="
        found.append(Compare(name, operator, (number,)))
        taken.append(match.span())
    return found


def _sign(before: str) -> str:
    """Return the comparison that the words before a number say: those next to it first, then over one word."""
    for gap in (r"\s+$", r"\s+\w+\s+$"):
        for words, sign in _COMPARED:
            if re.search(rf"\b{words}{gap}", before, re.I):
                return sign
    return "="


def _value(text: str) -> int | float:
    plain = text.replace(",", "").rstrip(".")
    return float(plain) if "." in plain or len(plain) > 18 else int(plain)  # beyond 64 bits no field has a number


def _column_of(text: str, span: tuple[int, int], numbers: Sequence[float], table: RowTable) -> str | None:
    """Return the column of numbers: the one that is named near, else the narrowest that has such numbers."""
    before = _WORD.findall(text[: span[0]])[-_NEAR:]
    after = _WORD.findall(text[span[1] :])[:2]
    for word in (*reversed(before), *after):
        name = _column(word, table)
        if name and table.columns[name].numeric:
            return name
    inside = [
        (one.high - one.low, one.name)
        for one in table.numbers()
        if one.low is not None and one.high is not None and one.low <= max(numbers) and min(numbers) <= one.high
    ]
    if not inside and all(1000 <= number <= 2200 for number in numbers):  # a year that no row has
        inside = [(0.0, one.name) for one in table.numbers() if _is_year(one)]
    return min(inside)[1] if inside else None


def _texts(text: str, table: RowTable, taken: list[tuple[int, int]]) -> list[Filter]:
    """Return filters for runs of words that are values of columns, the longest first."""
    words = list(_WORD.finditer(text))
    found: list[tuple[int, Filter]] = []
    for length in range(min(_LONGEST, len(words)), 0, -1):
        for start in range(len(words) - length + 1):
            span = words[start].start(), words[start + length - 1].end()
            if any(span[0] < end and start_ < span[1] for start_, end in taken):
                continue
            run = text[span[0] : span[1]]
            folded = normal_entity(run)
            if length == 1 and (folded in _COMMON or folded.isdigit()):
                continue
            names = [name for name, column in table.columns.items() if folded in column.values]
            if not names or (length == 1 and _column(folded, table)):
                continue
            near = {_column(word, table) for word in _WORD.findall(text[: span[0]])[-_NEAR:]}
            name = next((one for one in names if one in near), names[0])
            # a lower-case word of a title or a name is mostly just a word
            if length == 1 and run.islower() and len(table.columns[name].values) > 1000:
                continue
            one: Filter = Compare(name, "=", (table.columns[name].values[folded],))
            found.append((span[0], Not(one) if _NEGATED.search(text[: span[0]]) else one))
            taken.append(span)
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def _shown(one: Filter) -> str:
    if isinstance(one, Not):
        return f"not {_shown(one.part)}"
    assert isinstance(one, Compare)
    return f"{one.field} {one.operator} {one.values[0]!r}"
