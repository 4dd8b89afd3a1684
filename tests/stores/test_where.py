from __future__ import annotations

import json
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.stores.where import And, Compare, Filter, IsNull, Not, Or, matches, parse_where
from consilience.stores.where_sqlite import sqlite_condition

FIELDS = ("year", "lang", "a b", "x.y", "drop")
PEOPLE = [
    Document("a", "t", fields={"year": 2020, "lang": "en", "draft": True}),
    Document("b", "t", title="B", fields={"year": 2021.5, "lang": ("en", "de"), "draft": False}),
    Document("c", "t", parent="a", fields={"year": "2020", "lang": None}),
    Document("d", "t", fields={"lang": ()}),
]


def in_sqlite(documents: list[Document], found: Filter) -> list[str]:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE documents(id TEXT, parent TEXT, title TEXT, source TEXT, fields TEXT)")
    for one in documents:
        fields = json.dumps({k: list(v) if isinstance(v, tuple) else v for k, v in one.fields.items()})
        database.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?)", (one.id, one.parent, one.title, one.source, fields)
        )
    text, values = sqlite_condition(found)
    return [row[0] for row in database.execute(f"SELECT id FROM documents WHERE {text} ORDER BY rowid", values)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("year = 2020", "a"),
        ("year != 2020", "b"),
        ("not year = 2020", "b"),
        ("year > 2020", "b"),
        ("year = '2020'", "c"),
        ("lang = 'de'", "b"),
        ("lang in ('de', 'fr')", "b"),
        ("not lang in ('de', 'fr')", "a"),
        ("lang not in ('fr', 3)", ""),
        ("lang is null", "cd"),
        ("lang is not null", "ab"),
        ("draft = true", "a"),
        ("draft != true", "b"),
        ("draft = 1", ""),
        ("id = 'c' or title = 'B'", "bc"),
        ("parent = 'a'", "c"),
        ("parent is null and source is null", "abd"),
        ("title is null", "acd"),
        ("nothing = 1 or year = 2020", "a"),
        ("not (nothing = 1 or year = 2020)", ""),
        ("year >= 2020 AND (lang = 'en' or lang = 'fr')", "ab"),
        ("`year` < 2021", "a"),
    ],
)
def test_the_meaning_is_the_same_in_python_and_sqlite(where: str, expected: str) -> None:
    found = parse_where(where)
    assert "".join(one.id for one in PEOPLE if matches(found, one)) == expected
    assert "".join(in_sqlite(PEOPLE, found)) == expected


def test_json_and_text_are_one_language() -> None:
    text = "(a = 1 and b in ('x')) or not (c is null) or d >= 2.5"
    content = {"or": [{"a": 1, "b": {"in": ["x"]}}, {"not": {"c": None}}, {"d": {">=": 2.5}}]}
    assert parse_where(text) == parse_where(content)
    assert parse_where({"a": {">": 1, "<": 3}}) == parse_where("a > 1 and a < 3")
    assert parse_where({"a": {"null": False, "not in": [1]}}) == parse_where("a is not null and a not in (1)")


@pytest.mark.parametrize(
    "where",
    ["", "year", "year =", "year = = 3", "= 3", "year in ()", "year in (1", "(year = 1", "year = 1)", "year = 1 2",
     "year is 3", "a ; drop table documents", "year = 'x", "a = 99999999999999999999", "a > true", "`` = 1",
     {}, {"and": []}, {"a": {}}, {"a": {"like": 1}}, {"a": [1]}, {"a": {"in": []}}, {"not": 3}, {"a": float("nan")},
     {'a"b': 1}, "(" * 60 + "a = 1" + ")" * 60, {"a": "\x00"}, "a = 1" + " or a = 1" * 3000],
)  # fmt: skip
def test_what_is_no_filter_is_refused(where: object) -> None:
    with pytest.raises(RequestError, match="where"):
        parse_where(where)  # type: ignore[arg-type]


scalars = st.one_of(
    st.integers(-3, 3), st.booleans(), st.sampled_from([0.5, -1.5, 2.0, 1e300]), st.text("aé'\"$?;%\\", max_size=3)
)
values = st.one_of(st.none(), scalars, st.lists(scalars, max_size=3).map(tuple))
documents = st.builds(
    lambda fields, title: Document("x", "text", title=title, fields=fields),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=4),
    st.sampled_from(["", "aé", "'"]),
)


def _compare(field: str, operator: str, given: list[object]) -> Filter:
    if operator == "in":
        return Compare(field, "in", tuple(given))  # type: ignore[arg-type]
    first = given[0]
    return Compare(field, "=" if isinstance(first, bool) else operator, (first,))  # type: ignore[arg-type]


leaves = st.one_of(
    st.builds(
        _compare,
        st.sampled_from([*FIELDS, "title", "id"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "in"]),
        st.lists(scalars, min_size=1, max_size=3),
    ),
    st.builds(IsNull, st.sampled_from([*FIELDS, "title", "parent"])),
)
filters = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: And(tuple(parts))),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: Or(tuple(parts))),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(documents, filters)
def test_sqlite_agrees_with_python(document: Document, found: Filter) -> None:
    assert bool(in_sqlite([document], found)) == matches(found, document)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_where(text)
    except RequestError:
        return
    assert isinstance(in_sqlite(PEOPLE, found), list)
