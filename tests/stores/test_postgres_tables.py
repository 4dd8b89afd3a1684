"""Tables of a real PostgreSQL server become documents, by SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consilience.data.ingestion.reading import Reading
from consilience.errors import DataError
from consilience.retrieval.index import Index
from consilience.retrieval.indexing import index_files
from consilience.retrieval.relational import Rows

pytest.importorskip("sqlalchemy")
psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.slow

SCHEMA = """
CREATE SCHEMA cinema;
CREATE TABLE cinema.people(id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text UNIQUE);
CREATE TABLE cinema.films(id int PRIMARY KEY, title text, year int, price numeric(6, 2), tags text[], more jsonb,
  seen timestamptz, poster bytea, director uuid REFERENCES cinema.people);
CREATE TABLE public.films_elsewhere(id int PRIMARY KEY);
INSERT INTO cinema.people VALUES ('00000000-0000-0000-0000-000000000001', 'Michael Mann');
INSERT INTO cinema.films SELECT n, 'Film ' || n, 1900 + n % 100, n + 0.5, '{a,b}', '{"n": 1}', '2024-01-02Z', '\\x01',
  '00000000-0000-0000-0000-000000000001' FROM generate_series(1, 2500) n;
"""


@pytest.fixture
def address(postgres_url: str) -> Iterator[str]:
    with psycopg.connect(postgres_url) as admin:
        admin.execute(SCHEMA)
    yield f"{postgres_url}{'&' if '?' in postgres_url else '?'}schema=cinema"
    with psycopg.connect(postgres_url) as admin:
        admin.execute("DROP SCHEMA cinema CASCADE; DROP TABLE public.films_elsewhere")


def test_rows_of_a_server_are_documents(address: str, tmp_path: Path) -> None:
    reading = Reading(address)
    found = {one.id.partition("#")[2]: one for one in reading}
    assert len(found) == 2501 == reading.expected() and not reading.failures
    film = found["films.7"]
    assert (film.title, film.fields["year"], film.fields["price"], film.fields["tags"]) == (
        "Film 7",
        1907,
        7.5,
        ("a", "b"),
    )
    assert film.fields["more"] == '{"n": 1}' and str(film.fields["seen"]).startswith("2024-01-02T")
    assert str(film.fields["references"][0]).endswith("#people.00000000-0000-0000-0000-000000000001")
    assert ["poster" in one.text for one in reading.notices] == [True]
    done = index_files(f"{address}&table=films", tmp_path / "index", encoders={}, progress=False)
    assert done.report.added == 2500
    with Index.open(tmp_path / "index") as index:
        assert Rows(index).answer("how many films are from 1950?").values == {"": 25}
    with psycopg.connect(address.partition("schema=")[0].rstrip("?&")) as admin:
        admin.execute("DELETE FROM cinema.films WHERE id > 2400; UPDATE cinema.films SET title = 'Heat' WHERE id = 1")
    again = index_files(f"{address}&table=films", tmp_path / "index", prune=True, progress=False)
    assert (again.report.replaced, again.report.deleted, again.report.unchanged) == (1, 100, 2399)


def test_tables_of_another_schema_are_not_there(address: str) -> None:
    with pytest.raises(DataError, match="films_elsewhere"):
        Reading(f"{address}&table=films_elsewhere")
