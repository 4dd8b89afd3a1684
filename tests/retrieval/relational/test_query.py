"""The language of questions to rows: filters, numbers, groups, order, references; and nothing else gets through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.errors import RequestError
from consilience.retrieval.index import Index
from consilience.retrieval.relational import parse_query, read_schema, run_query
from tests.retrieval.relational.films import filled


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with filled(tmp_path_factory.mktemp("films") / "index") as index:
        yield index


def test_the_schema_is_that_of_the_rows(index: Index) -> None:
    tables = read_schema(index)
    assert {name: table.count for name, table in tables.items()} == {"movies": 5, "directors": 3}
    movies = tables["movies"].columns
    assert set(movies) == {"title", "year", "genres", "rating", "references"} and movies["year"].low == 1972
    assert movies["genres"].values["science fiction"] == "Science Fiction" and not movies["genres"].numeric


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("count from movies", {"": 5}),
        ("count from movies where year > 1990 and genres = 'Crime'", {"": 2}),
        ("average(rating) from movies where year < 1980", {"": 8.05}),
        ("sum(year) from movies where title = 'Moon'", {"": 2009}),
        ("min(year) from movies", {"": 1972}),
        ("max(rating) from movies where year = 1800", {"": None}),
        ("count(rating) from directors", {"": 0}),
        ("count from movies group by genres", {"Science Fiction": 3, "Crime": 2, "Drama": 2, "Action": 1}),
        ("max(rating) from movies group by genres limit 1", {"Action": 8.3}),
        ("count from movies join director where director.country = 'Russia'", {"": 2}),
        ("count from movies join director group by director.country", {"Russia": 2, "United States": 2, "England": 1}),
        ("count from `movies` where `year` >= 2004", {"": 2}),
    ],
)  # fmt: skip
def test_numbers(index: Index, query: str, values: dict[str, float | None]) -> None:
    found = run_query(index, query)
    assert found.values == values and set(found.values) <= set(values)
    assert "movies" in found.as_text() or "directors" in found.as_text() or not values


def test_rows_in_an_order_and_what_they_say(index: Index) -> None:
    found = run_query(index, "rows from movies where genres = 'Crime' order by year desc limit 1")
    assert [row.title for row in found.rows] == ["Collateral"] and found.matched == 2
    assert "year = 2004" in found.as_text() and "genres = Crime" in found.as_text()
    assert [row.title for row in run_query(index, "rows from movies order by rating").rows][:2] == [
        "Collateral",
        "Moon",
    ]
    limited = run_query(index, "rows from movies", where="year > 1990", limit=2)
    assert len(limited.rows) == 2 and limited.matched == 3
    assert run_query(index, "rows from nothing").rows == ()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("drop table movies", "write WHAT from TABLE"),
        ("delete from movies", "'delete' is unknown"),
        ("count from movies; drop table movies", "write WHAT from TABLE"),
        ("sum from movies", "of which column"),
        ("rows(year) from movies", "rows have no column"),
        ("count from movies where", "write WHAT from TABLE"),
        ("count from movies where year = 1 union select 1", "where"),
        ("count from movies join studio", "no row refers to others by 'studio'"),
    ],
)
def test_what_is_no_query_is_refused(index: Index, query: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        run_query(index, query)
    assert run_query(index, "count from movies").values == {"": 5}


def test_too_many_rows_are_refused(index: Index) -> None:
    with pytest.raises(RequestError, match="5 rows of 'movies' to read, 4 at most"):
        run_query(index, "count from movies", most=4)


@given(st.text(max_size=60))
def test_any_text_is_a_query_or_an_error(text: str) -> None:
    with suppress(RequestError):
        parse_query(text)
