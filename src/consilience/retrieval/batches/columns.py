"""Attributes in columns, and the filters of the stores evaluated on all rows at once.

The values of a column are numbered in their order, each kind (truth values, numbers, texts) for itself, so that a
comparison is a range of numbers: exact for integers of 64 bits, and without a look at the values of single rows.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.data.documents import Document, Scalar
from consilience.errors import DataError
from consilience.stores.where import PROPERTIES, And, Compare, Filter, IsNull, Not, Where, kind_of, parse_where

__all__ = ["Columns"]

Bools = NDArray[np.bool_]
_KINDS = ("truth", "number", "text")


@dataclass(frozen=True)
class _Column:
    """One field: its distinct values in order by kind, and per entry the row and the number of the value."""

    values: Mapping[str, list[Any]]
    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    several: bool  # whether a row has more than one entry


class Columns:
    """A table of attributes that filters are evaluated on.

    >>> table = Columns([{"year": 2024, "lang": "en"}, {"year": 1999}, {"lang": "de"}])
    >>> table.matches("year > 2000 or lang = 'de'")
    array([ True, False,  True])
    >>> table.matches("not year > 2000")
    array([False,  True, False])

    rows: fields by name, or documents (then also id, parent, title and source). Values are texts, numbers, truth
    values, several of them in a tuple or list, or None, which is as absent. A filter means what it means in the stores
    (`consilience.stores.where`): a row without the field is neither matched by a comparison nor by its opposite.

    Raises DataError naming the row of a value that is none of these.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any] | Document]) -> None:
        self._count = len(rows)
        entries: dict[str, tuple[list[int], list[Scalar]]] = {}
        for row, item in enumerate(rows):
            for name, given in _fields(item).items():
                values = given if isinstance(given, tuple | list) else (given,)
                for value in values:
                    if value is None and values is not given:
                        continue
                    if not _usable(value):
                        raise DataError(
                            f"row {row}: {name!r} is {value!r}; an attribute is a text, a finite number, true or false"
                        )
                    own = entries.setdefault(name, ([], []))
                    own[0].append(row)
                    own[1].append(value)
        self._columns = {name: _column(np.array(own, np.int64), values) for name, (own, values) in entries.items()}

    def __len__(self) -> int:
        return self._count

    def matches(self, where: Where | None) -> Bools:
        """Return for every row whether a filter is true of it; all rows without a filter."""
        if where is None:
            return np.ones(self._count, bool)
        return self._value(parse_where(where))[0]

    def joined(self, other: Columns) -> Columns:
        """Return the rows of this table and after them those of another."""
        found = Columns([])
        found._count = self._count + other._count
        for name in self._columns.keys() | other._columns.keys():
            parts = [(self._columns.get(name), 0), (other._columns.get(name), self._count)]
            found._columns[name] = _together([(part, start) for part, start in parts if part is not None])
        return found

    def take(self, rows: NDArray[np.int64]) -> Columns:
        """Return the table of some rows, in that order; no row twice."""
        found = Columns([])
        found._count = len(rows)
        place = np.full(self._count, -1, np.int64)
        place[rows] = np.arange(len(rows))
        for name, column in self._columns.items():
            kept = place[column.rows] >= 0
            found._columns[name] = _Column(column.values, place[column.rows[kept]], column.codes[kept], column.several)
        return found

    def _value(self, found: Filter) -> tuple[Bools, Bools]:
        """Return where a filter is true and where it is false; it is unknown elsewhere."""
        if isinstance(found, IsNull):
            present = np.zeros(self._count, bool)
            if found.field in self._columns:
                present[self._columns[found.field].rows] = True
            return ~present, present
        if isinstance(found, Not):
            true, false = self._value(found.part)
            return false, true
        if isinstance(found, Compare):
            return self._compare(found)
        each = [self._value(part) for part in found.parts]
        every, some = np.logical_and.reduce, np.logical_or.reduce
        trues, falses = [true for true, _ in each], [false for _, false in each]
        return (every(trues), some(falses)) if isinstance(found, And) else (some(trues), every(falses))

    def _compare(self, found: Compare) -> tuple[Bools, Bools]:
        column = self._columns.get(found.field)
        if column is None:
            return np.zeros(self._count, bool), np.zeros(self._count, bool)
        outcome = np.zeros(sum(map(len, column.values.values())) + 1, np.int8)  # of every value: 1 true, -1 false
        start = 0
        for kind in _KINDS:
            own = column.values[kind]
            asked = [value for value in found.values if kind_of(value) == kind]
            if asked:
                _ranges(outcome[start : start + len(own)], found, own, asked)
            start += len(own)
        by_entry = outcome[column.codes]
        if not column.several:
            by_row = np.zeros(self._count, np.int8)
            by_row[column.rows] = by_entry
            return by_row > 0, by_row < 0
        true, false = np.zeros(self._count, bool), np.zeros(self._count, bool)
        true[column.rows[by_entry > 0]] = True
        false[column.rows[by_entry < 0]] = True
        return true, false & ~true


def _fields(item: Mapping[str, Any] | Document) -> Mapping[str, Any]:
    if not isinstance(item, Document):
        return item
    found = {key: value for key, value in item.fields.items() if key not in PROPERTIES}
    return found | {name: getattr(item, name) or None for name in PROPERTIES}


def _usable(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _column(rows: NDArray[np.int64], values: Sequence[Scalar]) -> _Column:
    kinds = [kind_of(value) for value in values]
    ordered: dict[str, list[Any]] = {
        kind: sorted({value for value, own in zip(values, kinds, strict=True) if own == kind}) for kind in _KINDS
    }
    numbers: dict[tuple[str, Scalar], int] = {}
    for kind in _KINDS:
        for value in ordered[kind]:
            numbers[kind, value] = len(numbers)
    codes = np.array([numbers[key] for key in zip(kinds, values, strict=True)], np.int64)
    return _Column(ordered, rows, codes, bool((rows[1:] == rows[:-1]).any()))


def _together(parts: Sequence[tuple[_Column, int]]) -> _Column:
    """Join the entries of columns whose rows start at different numbers: the values are numbered anew."""
    ordered: dict[str, list[Any]] = {
        kind: sorted({value for part, _ in parts for value in part.values[kind]}) for kind in _KINDS
    }
    numbers: dict[tuple[str, Scalar], int] = {}
    for kind in _KINDS:
        for value in ordered[kind]:
            numbers[kind, value] = len(numbers)
    codes = []
    for part, _ in parts:
        new = np.array([numbers[kind, value] for kind in _KINDS for value in part.values[kind]], np.int64)
        codes.append(new[part.codes])
    rows = np.concatenate([part.rows + start for part, start in parts])
    return _Column(ordered, rows, np.concatenate(codes), any(part.several for part, _ in parts))


def _ranges(outcome: NDArray[np.int8], found: Compare, own: list[Any], asked: list[Any]) -> None:
    """Write for the values of one kind, which are in order, what a comparison with values of that kind gives."""
    if found.operator == "in":
        outcome[:] = 0 if len(asked) < len(found.values) else -1
        for value in asked:
            outcome[bisect_left(own, value) : bisect_right(own, value)] = 1
        return
    low, high = bisect_left(own, asked[0]), bisect_right(own, asked[0])
    equal = slice(low, high)
    outcome[:] = 1 if found.operator == "!=" else -1
    if found.operator == "!=":
        outcome[equal] = -1
    elif found.operator == "=":
        outcome[equal] = 1
    elif found.operator in ("<", "<="):
        outcome[: high if found.operator == "<=" else low] = 1
    else:
        outcome[low if found.operator == ">=" else high :] = 1
