"""English questions become queries of rows, or nothing; whatever they hold, only values come of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.errors import RequestError
from consilience.retrieval.relational import Rows
from consilience.retrieval.searcher import Searcher
from tests.retrieval.relational.films import FILMS, filled


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    with filled(tmp_path_factory.mktemp("films") / "index") as index:
        yield Rows(index, names={"movies": ["film"]})


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("How many crime films came out after 1990?", ("movies", "count", "year > 1990", "genres = 'Crime'")),
        ("films between 1972 and 1979", ("movies", "year >= 1972", "year <= 1979")),
        ("movies of the 1970s", ("movies", "year >= 1970", "year <= 1979")),
        ("the average rating of Science Fiction films", ("movies", "average(rating)", "genres = 'Science Fiction'")),
        ("films from 2004 on with crime", ("movies", "year >= 2004", "genres = 'Crime'")),
        ("films after 2050", ("movies", "year > 2050")),
        ("films with a rating of at least 8", ("movies", "rating >= 8")),
        ("the film with the highest rating", ("movies", "order by rating desc")),
        ("the oldest drama", ("genres = 'Drama'", "order by year")),
        ("number of films per genre", ("movies", "count", "group by genres")),
        ("films that are not crime, from 2004", ("movies", "not genres = 'Crime'", "year = 2004")),
        ("directors from Russia", ("directors", "country = 'Russia'")),
    ],
)  # fmt: skip
def test_what_is_understood(rows: Rows, question: str, parts: tuple[str, ...]) -> None:
    found = rows.understand(question)
    assert found is not None and set(found.parts) == set(parts), found


@pytest.mark.parametrize("question", ["how do I sort a list", "", '"crime of 1995"', "what is love"])
def test_what_is_not_about_rows(rows: Rows, question: str) -> None:
    assert rows.understand(question) is None
    with pytest.raises(RequestError, match="names no column and no value"):
        rows.answer(question)


def test_answers(rows: Rows) -> None:
    assert rows.answer("How many films are there from before 1980?").values == {"": 2}
    assert rows.answer("average rating of crime films").values[""] == pytest.approx(7.9)
    assert [row.title for row in rows.answer("the newest film").rows][:1] == ["Moon"]
    assert rows.answer("films of 1995", where="rating > 9").rows == ()


def test_rows_are_a_store_beside_the_others(rows: Rows) -> None:
    searcher = Searcher(rows.index, more={"rows": rows})
    hit = searcher.search(["science fiction films after 2000"], k=1)[0][0]
    assert hit.document.title == "Moon" and hit.found["rows"].rank == 1
    assert {hit.document.title for hit in searcher.search(["crime films"], k=2)[0]} == {"Heat", "Collateral"}
    filtered = searcher.search(["crime films"], k=5, where="year < 2000")[0]
    assert "Collateral" not in {hit.document.title for hit in filtered}
    with pytest.raises(RequestError, match="as one of the index is"):
        Searcher(rows.index, more={"text": rows})


def test_the_schema_follows_commits(tmp_path: Path) -> None:
    with filled(tmp_path / "index") as index:
        rows = Rows(index)
        assert rows.understand("documentary") is None
        first = index.stores.documents(index.stores.numbers(["films.db#movies.1"]).values())
        (row,) = first.values()
        index.upsert(
            [type(row)(row.id, row.content, row.title, {**row.fields, "genres": ("Documentary",)}, None, row.source)]
        )
        assert rows.answer("documentary movies").rows[0].title == "Solaris"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["how many", "films", "after 1990", "crime", "'; DROP TABLE documents; --", "%s", "{0}", "average",
             "rating", "` or 1=1", "\\", "between 1 and", "per", "not", "1e999", "--",
             "union select", "\x00", "-5", "9" * 30]
        ),
        max_size=7,
    )
)  # fmt: skip
def test_nothing_in_a_question_does_anything(rows: Rows, parts: list[str]) -> None:
    question = " ".join(parts)
    with suppress(RequestError):
        rows.answer(question)
    rows.search([question], 5)
    assert len(rows.index.stores) == len(FILMS) + 4
