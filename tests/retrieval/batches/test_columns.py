"""A filter on columns means what it means on documents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.documents import Document
from consilience.errors import DataError
from consilience.retrieval.batches import Columns
from consilience.stores.where import And, Compare, Filter, IsNull, Not, Or, matches, parse_where

SCALARS = st.one_of(
    st.sampled_from([0, 1, -1, 2**53, 2**53 + 1, 2**62, 0.0, 1.0, 0.5, -0.5, "", "a", "b", "é", "1", True, False]),
    st.integers(-3, 3),
    st.floats(-2, 2, allow_nan=False),
)
FIELDS = ("x", "y", "z")
VALUES = st.one_of(st.none(), SCALARS, st.lists(SCALARS, max_size=3).map(tuple))
ROWS = st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES), max_size=8)


def comparisons() -> st.SearchStrategy[Filter]:
    names = st.sampled_from((*FIELDS, "id", "title", "nothing"))
    ordered = SCALARS.filter(lambda value: not isinstance(value, bool))
    return st.one_of(
        st.builds(lambda f, o, v: Compare(f, o, (v,)), names, st.sampled_from(["=", "!="]), SCALARS),
        st.builds(lambda f, o, v: Compare(f, o, (v,)), names, st.sampled_from(["<", "<=", ">", ">="]), ordered),
        st.builds(lambda f, v: Compare(f, "in", tuple(v)), names, st.lists(SCALARS, min_size=1, max_size=3)),
        st.builds(IsNull, names),
    )


FILTERS = st.recursive(
    comparisons(),
    lambda part: st.one_of(
        st.builds(Not, part),
        st.lists(part, min_size=1, max_size=3).map(lambda own: And(tuple(own))),
        st.lists(part, min_size=1, max_size=3).map(lambda own: Or(tuple(own))),
    ),
    max_leaves=6,
)


def documents(rows: list[dict[str, object]]) -> list[Document]:
    return [Document(f"d{n}", "t", title="T" if n % 2 else "", fields=row) for n, row in enumerate(rows)]


@settings(max_examples=400, deadline=None)
@given(ROWS, FILTERS)
def test_columns_and_documents_agree(rows, found):
    given_ = documents(rows)
    assert Columns(given_).matches(found).tolist() == [matches(found, document) for document in given_]


@settings(max_examples=150, deadline=None)
@given(ROWS, ROWS, FILTERS, st.randoms(use_true_random=False))
def test_joined_and_taken_tables_agree_with_one_made_at_once(first, second, found, random):
    whole = Columns(first + second)
    joined = Columns(first).joined(Columns(second))
    expected = whole.matches(found)
    assert len(joined) == len(whole) and np.array_equal(joined.matches(found), expected)
    order = random.sample(range(len(whole)), len(whole) // 2)
    taken = joined.take(np.array(order, np.int64))
    assert np.array_equal(taken.matches(found), expected[order])


def test_large_integers_are_not_rounded():
    table = Columns([{"n": 2**53}, {"n": 2**53 + 1}, {"n": float(2**53)}])
    assert table.matches(parse_where(f"n = {2**53 + 1}")).tolist() == [False, True, False]
    assert table.matches(f"n = {2**53}").tolist() == [True, False, True]


def test_without_a_filter_every_row_matches():
    assert Columns([{}, {"a": 1}]).matches(None).tolist() == [True, True]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", {"a": 1}, [None, object()]])
def test_values_that_cannot_be_compared_are_refused_by_row(value):
    with pytest.raises(DataError, match=r"row 1: 'x' is .*; an attribute is a text, a finite number, true or false"):
        Columns([{"x": 1}, {"x": value}])
