"""Filters as conditions of PostgreSQL: all values and names are parameters, none is put into the text."""

from __future__ import annotations

import json
from decimal import Decimal

from consilience.data.documents import Scalar
from consilience.stores.where import PROPERTIES, And, Compare, Filter, IsNull, Not, Or, kind_of

__all__ = ["exact_number", "postgres_condition"]

_LOOKED_UP = 16  # values of a list that are looked up in the index of fields
_EXACT = 2.0**53  # larger floats are whole numbers, with more digits than `repr` gives
_AS = {  # kind of value -> what PostgreSQL calls it, the stored value as one, the type of the parameter
    "number": ("number", "{0}::numeric", "numeric"),
    "text": ("string", "({0} #>> '{{}}') COLLATE \"C\"", "text"),
    "truth": ("boolean", "{0}::boolean", "boolean"),
}


def postgres_condition(found: Filter) -> tuple[str, dict[str, object]]:
    """Return a condition on the table `documents` with its parameters; true, false, or NULL for unknown.

    >>> from consilience.stores.where import parse_where
    >>> postgres_condition(parse_where("id = 'a'"))
    ("(nullif(documents.id, '') = %(where_0)s::text)", {'where_0': 'a'})

    Columns id, parent, title, source are texts that compare by code point, `fields` is a jsonb. Before comparisons of
    fields with values comes what follows from them and the index of fields can answer.
    """
    text, values = _condition(found)
    if (narrowed := _narrowed(found)) is not None:
        text, values = f"({narrowed[0]} AND {text})", [*narrowed[1], *values]
    first, *others = text.split("%s")
    named = [f"%(where_{place})s{piece}" for place, piece in enumerate(others)]
    return "".join([first, *named]), {f"where_{place}": value for place, value in enumerate(values)}


def _condition(found: Filter) -> tuple[str, list[object]]:
    if isinstance(found, IsNull):
        if found.field in PROPERTIES:
            return f"({_column(found.field)} IS NULL)", []
        text = "coalesce(documents.fields -> %s::text, 'null') IN ('null'::jsonb, '[]'::jsonb)"
        return f"({text})", [found.field]
    if isinstance(found, Not):
        text, values = _condition(found.part)
        return f"(NOT {text})", values
    if isinstance(found, And | Or):
        parts = [_condition(part) for part in found.parts]
        word = " AND " if isinstance(found, And) else " OR "
        return f"({word.join(text for text, _ in parts)})", [value for _, values in parts for value in values]
    return _property(found) if found.field in PROPERTIES else _field(found)


def _narrowed(found: Filter) -> tuple[str, list[object]] | None:
    """Return what documents that pass contain, as the index of fields knows it; None where that is nothing."""
    if isinstance(found, And | Or):
        parts = [_narrowed(part) for part in found.parts]
        known = [part for part in parts if part is not None]
        if not known or (isinstance(found, Or) and len(known) < len(parts)):
            return None
        word = " AND " if isinstance(found, And) else " OR "
        return f"({word.join(text for text, _ in known)})", [value for _, values in known for value in values]
    if not isinstance(found, Compare) or found.field in PROPERTIES or found.operator not in ("=", "in"):
        return None
    if len(found.values) > _LOOKED_UP:
        return None
    name = json.dumps(found.field)
    plain = [_json(value) for value in found.values]
    contained = [form for value in plain for form in (f"{{{name}: {value}}}", f"{{{name}: [{value}]}}")]
    return f"({' OR '.join(['documents.fields @> %s::jsonb'] * len(contained))})", list(contained)


def _json(value: Scalar) -> str:
    return str(exact_number(value)) if kind_of(value) == "number" else json.dumps(value)  # type: ignore[arg-type]


def exact_number(value: int | float) -> Decimal:
    """Return a number with all its digits, so that it compares with others as in Python.

    >>> exact_number(0.1), exact_number(1e16 + 2)
    (Decimal('0.1'), Decimal('10000000000000002.0'))
    """
    if isinstance(value, float) and abs(value) >= _EXACT:
        return Decimal(f"{value:.1f}")
    return Decimal(repr(value))


def _column(name: str) -> str:
    return f"nullif(documents.{name}, '')"


def _property(found: Compare) -> tuple[str, list[object]]:
    if not any(kind_of(value) == "text" for value in found.values):
        return "(NULL::boolean)", []
    text, values = _test(found, "text", _column(found.field))
    return f"({text})", values


def _field(found: Compare) -> tuple[str, list[object]]:
    """Compare by the type of the stored value; a list by its values, any of which may be the one."""
    kept = "(documents.fields -> %s::text)"
    alone, alone_values = _branches(found, kept)
    each, each_values = _branches(found, "each.value")
    any_of = f"(SELECT bool_or(CASE jsonb_typeof(each.value) {each} END) FROM jsonb_array_elements({kept}) AS each)"
    # each branch of a lone value starts with its name
    own = [one for values in alone_values for one in (found.field, *values)]
    inner = [one for values in each_values for one in values]
    text = f"(CASE jsonb_typeof({kept}) {alone} WHEN 'array' THEN {any_of} END)"
    return text, [found.field, *own, *inner, found.field]


def _branches(found: Compare, value: str) -> tuple[str, list[list[object]]]:
    """Return the comparisons of one stored value, by its type; unknown where none of this kind is asked for."""
    branches, parameters = [], []
    for kind, (called, form, _) in _AS.items():
        if any(kind_of(one) == kind for one in found.values):
            test, values = _test(found, kind, form.format(value))
            branches.append(f"WHEN '{called}' THEN {test}")
            parameters.append(values)
    return " ".join(branches), parameters


def _test(found: Compare, kind: str, value: str) -> tuple[str, list[object]]:
    """Return a test of a stored value of a kind against the given values of this kind."""
    given = [exact_number(one) if kind == "number" else one for one in found.values if kind_of(one) == kind]  # type: ignore[arg-type]
    called = _AS[kind][2]
    if found.operator != "in":
        return f"{value} {_OPERATORS[found.operator]} %s::{called}", [given[0]]
    others = " OR NULL" if len(given) < len(found.values) else ""
    return f"({value} = ANY(%s::{called}[]){others})", [given]


_OPERATORS = {"=": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
