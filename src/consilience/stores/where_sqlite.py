"""Filters as conditions of SQLite: all values and names are parameters, none is put into the text."""

from __future__ import annotations

from consilience.stores.where import PROPERTIES, And, Compare, Filter, IsNull, Not, Or, kind_of

__all__ = ["sqlite_condition"]

_TYPES = {"number": "'integer', 'real'", "text": "'text'", "truth": "'true', 'false'"}


def sqlite_condition(found: Filter) -> tuple[str, list[object]]:
    """Return a condition on the table `documents` with its parameters; true, false, or NULL for unknown.

    >>> from consilience.stores.where import parse_where
    >>> sqlite_condition(parse_where("id = 'a'"))
    ("(nullif(id, '') = ?)", ['a'])
    """
    if isinstance(found, IsNull):
        if found.field in PROPERTIES:
            return f"(nullif({found.field}, '') IS NULL)", []
        path = _path(found.field)
        kind = "coalesce(json_type(fields, ?), 'null')"
        return f"({kind} = 'null' OR ({kind} = 'array' AND json_array_length(fields, ?) = 0))", [path, path, path]
    if isinstance(found, Not):
        text, values = sqlite_condition(found.part)
        return f"(NOT {text})", values
    if isinstance(found, And | Or):
        parts = [sqlite_condition(part) for part in found.parts]
        word = " AND " if isinstance(found, And) else " OR "
        return f"({word.join(text for text, _ in parts)})", [value for _, values in parts for value in values]
    return _property(found) if found.field in PROPERTIES else _field(found)


def _path(name: str) -> str:
    return f'$."{name}"'


def _property(found: Compare) -> tuple[str, list[object]]:
    texts = [value for value in found.values if kind_of(value) == "text"]
    column = f"nullif({found.field}, '')"
    if not texts:
        return "(NULL)", []
    if found.operator != "in":
        return f"({column} {found.operator} ?)", [texts[0]]
    others = " OR NULL" if len(texts) < len(found.values) else ""
    return f"({column} IN ({', '.join('?' * len(texts))}){others})", [*texts]


def _field(found: Compare) -> tuple[str, list[object]]:
    """Compare by the type of the stored value; a list by its values, any of which may be the one."""
    alone, values = _comparison(found, "json_type(fields, ?)", "json_extract(fields, ?)")
    path = _path(found.field)
    each, each_values = _comparison(found, "each.type", "each.value")
    text = (
        f"(CASE WHEN json_type(fields, ?) = 'array' "
        f"THEN (SELECT max({each}) FROM json_each(documents.fields, ?) AS each) ELSE {alone} END)"
    )
    own = [path if value is _PATH else value for value in values]
    inner = [value for value in each_values if value is not _PATH]
    return text, [path, *inner, path, *own]


_PATH = object()


def _comparison(found: Compare, kind: str, value: str) -> tuple[str, list[object]]:
    """Return a comparison of one stored value, with `_PATH` among the parameters where the path is to stand."""
    branches, parameters = [], list[object]()
    for name, types in _TYPES.items():
        given = [one for one in found.values if kind_of(one) == name]
        if not given:
            continue
        if found.operator == "in":
            others = " OR NULL" if len(given) < len(found.values) else ""
            test = f"({value} IN ({', '.join('?' * len(given))}){others})"
        else:
            test = f"{value} {found.operator} ?"
        branches.append(f"WHEN {kind} IN ({types}) THEN {test}")
        parameters += [_PATH, _PATH, *(int(one) if isinstance(one, bool) else one for one in given)]
    return f"CASE {' '.join(branches)} END", parameters
