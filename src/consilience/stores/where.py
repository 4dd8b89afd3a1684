"""The one filter language of every store: `year >= 2020 and lang in ("en", "de") and not draft = true`.

    filter     := part ("or" part)*            part := item ("and" item)*
    item       := "not" item | "(" filter ")" | comparison
    comparison := FIELD ("=" | "==" | "!=" | "<" | "<=" | ">" | ">=") VALUE
                | FIELD ["not"] "in" "(" VALUE ("," VALUE)* ")"
                | FIELD "is" ["not"] "null"
    FIELD      := a letter or _, then letters, digits, _ . - or a name between backticks
    VALUE      := a number | 'text' | "text" (the quote itself is doubled) | true | false

Fields are those of the documents, and `id`, `parent`, `title`, `source`. A comparison with a field that is absent, or
of another type than the value, is *unknown*, as NULL is in SQL: `not` of unknown is unknown, and only what is true gets
through. A field with a list compares as true if one of its values does. Texts compare by code point.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consilience.data.documents import Document, Scalar
from consilience.errors import RequestError

__all__ = ["And", "Compare", "Filter", "IsNull", "Not", "Or", "Where", "matches", "parse_where"]

OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "in")
PROPERTIES = ("id", "parent", "title", "source")
_LARGEST = 1 << 63
_DEEPEST = 50
_LONGEST = 10_000


@dataclass(frozen=True)
class Compare:
    """A field against a value; "in" against several."""

    field: str
    operator: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class IsNull:
    """Whether a field is absent; true or false, never unknown."""

    field: str


@dataclass(frozen=True)
class Not:
    """The opposite; unknown of unknown."""

    part: Filter


@dataclass(frozen=True)
class And:
    """True where all parts are, false where one is false."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    """True where one part is, false where all are false."""

    parts: tuple[Filter, ...]


Filter = Compare | IsNull | Not | And | Or
Where = str | Mapping[str, Any] | Filter
"""A filter as text, as JSON, or as parsed."""


def parse_where(where: Where) -> Filter:
    """Read a filter from its text form or its JSON form.

    >>> parse_where("year >= 2020 and lang in ('en', 'de')") == parse_where(
    ...     {"and": [{"year": {">=": 2020}}, {"lang": {"in": ["en", "de"]}}]}
    ... )
    True
    >>> parse_where("year >= ")
    Traceback (most recent call last):
    ...
    consilience.errors.RequestError: where: a value is missing after 'year >= '; give a number, 'text', true or false

    JSON: {"and": [...]}, {"or": [...]}, {"not": {...}}, {FIELD: VALUE} (equal), {FIELD: None} (absent) and
    {FIELD: {OPERATOR: VALUE, ...}} with the operators of the text form, "in" and "not in" with lists, and
    {"null": true or false}. Several fields in one object: all of them. A field named and, or, not needs the text form.

    Raises RequestError saying what was read and what was expected.
    """
    if isinstance(where, str):
        if len(where) > _LONGEST:
            raise RequestError(f"where: {len(where)} characters; at most {_LONGEST}")
        return _Parser(where).filter_alone()
    return _from_json(where, 0) if isinstance(where, Mapping) else where


def matches(found: Filter, document: Document) -> bool:
    """Whether a document gets through a filter: whether it is true of it.

    >>> matches(parse_where("year > 2000"), Document("a", "", fields={"year": 2024}))
    True
    >>> matches(parse_where("not year > 2000"), Document("a", ""))
    False
    """
    return _value(found, document) is True


def _value(found: Filter, document: Document) -> bool | None:
    if isinstance(found, IsNull):
        return _field(found.field, document) == ()
    if isinstance(found, Not):
        inner = _value(found.part, document)
        return None if inner is None else not inner
    if isinstance(found, Compare):
        each = [_compared(found, value) for value in _field(found.field, document)]
        return True if True in each else False if False in each else None
    each = [_value(part, document) for part in found.parts]
    decisive = isinstance(found, Or)
    return decisive if decisive in each else None if None in each else not decisive


def _field(name: str, document: Document) -> tuple[Scalar, ...]:
    value = (getattr(document, name) or None) if name in PROPERTIES else document.fields.get(name)
    return () if value is None else value if isinstance(value, tuple) else (value,)


def kind_of(value: Scalar) -> str:
    """Return "truth", "number" or "text": values of different kinds do not compare."""
    return "truth" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _compared(found: Compare, value: Scalar) -> bool | None:
    of_kind = [one for one in found.values if kind_of(one) == kind_of(value)]
    if not of_kind:
        return None
    if found.operator == "in":
        return True if value in of_kind else None if len(of_kind) < len(found.values) else False
    return _COMPARED[found.operator](value, of_kind[0])


def _checked(field: str, operator: str, values: Sequence[Any]) -> Compare:
    for value in values:
        if not isinstance(value, str | int | float | bool) or value != value or _beyond(value):
            raise RequestError(
                f"where: {field} {operator} {value!r}: a value is a number of 64 bits, a text, true or false"
            )
        if isinstance(value, str) and ("\x00" in value or any("\ud800" <= c <= "\udfff" for c in value)):
            raise RequestError(f"where: {field} {operator} {value!r}: no stored text holds such characters")
    if operator in ("<", "<=", ">", ">=") and isinstance(values[0], bool):
        raise RequestError(f"where: {field} {operator} {values[0]!r}: truth values have no order; use = or !=")
    return Compare(_named(field), operator, tuple(values))


def _beyond(value: Any) -> bool:
    """Whether a number is beyond what stores hold."""
    if isinstance(value, float):
        return value in (float("inf"), float("-inf"))
    return isinstance(value, int) and not -_LARGEST <= value < _LARGEST


def _named(field: Any) -> str:
    if not isinstance(field, str) or not field or '"' in field or "`" in field or not field.isprintable():
        raise RequestError(f"where: {field!r} is no name of a field; a name is a printable text without quotes")
    return field


def _joined(kind: type[And] | type[Or], parts: list[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


def _from_json(where: Any, depth: int) -> Filter:
    if not isinstance(where, Mapping) or not where or depth > _DEEPEST:
        wanted = f"at most {_DEEPEST} levels" if depth > _DEEPEST else "an object with at least one key"
        raise RequestError(f"where: {str(where)[:80]!r} is no filter; expected {wanted}")
    parts: list[Filter] = []
    for key, value in where.items():
        if key in ("and", "or"):
            if not isinstance(value, Sequence) or isinstance(value, str) or not value:
                raise RequestError(f"where: {key!r} takes a list of filters; found {value!r}")
            parts.append(_joined(And if key == "and" else Or, [_from_json(part, depth + 1) for part in value]))
        elif key == "not":
            parts.append(Not(_from_json(value, depth + 1)))
        elif value is None:
            parts.append(IsNull(_named(key)))
        elif isinstance(value, Mapping):
            parts += [_operation(_named(key), name, given) for name, given in value.items()] or [_no_operator(key)]
        else:
            parts.append(_checked(_named(key), "=", [value]))
    return _joined(And, parts)


def _no_operator(field: str) -> Filter:
    raise RequestError(f"where: {field!r} has no operator; there are {', '.join(OPERATORS)}, not in, null")


def _operation(field: str, name: Any, value: Any) -> Filter:
    if name == "null" and isinstance(value, bool):
        return IsNull(field) if value else Not(IsNull(field))
    if name in ("in", "not in"):
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise RequestError(f"where: {field} {name} {value!r}: expected a list of values")
        found = _checked(field, "in", value)
        return found if name == "in" else Not(found)
    name = "=" if name == "==" else name
    if name not in OPERATORS:
        raise RequestError(f"where: {field!r}: {name!r} is no operator; there are {', '.join(OPERATORS)}, not in, null")
    return _checked(field, name, [value])


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])
    | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<name>`[^`]*`|[^\W\d][\w.\-]*)
    | (?P<mark>==|!=|<=|>=|[=<>(),])
    )""",
    re.VERBOSE,
)


class _Parser:
    """Reads the text form, a token at a time."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        place = 0
        while text[place:].strip():
            found = _TOKEN.match(text, place)
            if found is None:
                raise RequestError(f"where: cannot read {text[place:].strip()[:40]!r} in {text[:200]!r}")
            kind = str(found.lastgroup)
            self.tokens.append((kind, found[kind], found.start(kind)))
            place = found.end()
        self.place = self.depth = 0

    def filter_alone(self) -> Filter:
        found = self.filter()
        if self.place < len(self.tokens):
            self.fail("'and', 'or' or the end is expected")
        return found

    def filter(self) -> Filter:
        parts = [self.conjunction()]
        while self.word("or"):
            parts.append(self.conjunction())
        return _joined(Or, parts)

    def conjunction(self) -> Filter:
        parts = [self.item()]
        while self.word("and"):
            parts.append(self.item())
        return _joined(And, parts)

    def item(self) -> Filter:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise RequestError(f"where: more than {_DEEPEST} levels of brackets and 'not'")
        if self.word("not"):
            found: Filter = Not(self.item())
        elif self.mark("("):
            found = self.filter()
            if not self.mark(")"):
                self.fail("')' is expected")
        else:
            found = self.comparison()
        self.depth -= 1
        return found

    def comparison(self) -> Filter:
        kind, token, _ = self.look()
        if kind != "name":
            self.fail("the name of a field is expected")
        self.place += 1
        field = _named(token.strip("`"))
        if self.word("is"):
            absent = not self.word("not")
            if not self.word("null"):
                self.fail("'null' is expected")
            return IsNull(field) if absent else Not(IsNull(field))
        negated = self.word("not")
        if self.word("in"):
            if not self.mark("("):
                self.fail("'(' is expected")
            values = [self.value()]
            while self.mark(","):
                values.append(self.value())
            if not self.mark(")"):
                self.fail("',' or ')' is expected")
            found = _checked(field, "in", values)
            return Not(found) if negated else found
        kind, token, _ = self.look()
        operator = "=" if token == "==" else token
        if negated or kind != "mark" or operator not in OPERATORS:
            self.fail("an operator (= != < <= > >= in, is null) is expected")
        self.place += 1
        return _checked(field, operator, [self.value()])

    def value(self) -> Scalar:
        kind, token, start = self.look()
        self.place += 1
        if kind == "number":
            return float(token) if set(token) & set(".eE") else int(token)
        if kind == "text":
            return token[1:-1].replace(token[0] * 2, token[0])
        if kind == "name" and token.lower() in ("true", "false"):
            return token.lower() == "true"
        raise RequestError(
            f"where: a value is missing after {self.text[:start][-60:]!r}; give a number, 'text', true or false"
        )

    def look(self) -> tuple[str, str, int]:
        return self.tokens[self.place] if self.place < len(self.tokens) else ("end", "", len(self.text))

    def word(self, word: str) -> bool:
        kind, token, _ = self.look()
        found = kind == "name" and token.lower() == word
        self.place += found
        return found

    def mark(self, mark: str) -> bool:
        kind, token, _ = self.look()
        found = kind == "mark" and token == mark
        self.place += found
        return found

    def fail(self, expected: str) -> None:
        _, token, start = self.look()
        where = f"at {token!r}, after {self.text[:start][-40:]!r}" if token else f"at the end of {self.text[-60:]!r}"
        raise RequestError(f"where: {expected} {where}")
