"""Tables of database servers, by SQLAlchemy; PostgreSQL itself is in the slow tests."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from consilience.data.documents import Document
from consilience.data.ingestion.reading import Reading
from consilience.errors import DataError, RequestError

sqlalchemy = pytest.importorskip("sqlalchemy")

SCHEMA = """
CREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE films(code TEXT PRIMARY KEY, title TEXT, year INTEGER, price DECIMAL(6, 2), made DATE, poster BLOB,
  director INTEGER REFERENCES people(id));
CREATE TABLE visits(film TEXT REFERENCES films(code), note TEXT);
CREATE TABLE "odd ""name"(x TEXT);
INSERT INTO people VALUES (1, 'Michael Mann'), (2, 'Duncan Jones');
INSERT INTO films VALUES ('h', 'Heat', 1995, 9.5, '1995-12-15', x'0102', 1), ('m', 'Moon', 2009, 7, NULL, NULL, 2);
INSERT INTO visits VALUES ('h', 'again'), (NULL, NULL);
INSERT INTO "odd ""name" VALUES ('value');
"""


@pytest.fixture
def address(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "shop") as connection:
        connection.executescript(SCHEMA)
    return f"sqlite+pysqlite:///{tmp_path}/shop"


def read(address: str) -> tuple[dict[str, Document], Reading]:
    reading = Reading(address)
    return {one.id: one for one in reading}, reading


def test_rows_have_keys_values_and_references(address: str) -> None:
    found, reading = read(address)
    assert set(found) == {
        "shop#people.1", "shop#people.2", "shop#films.h", "shop#films.m", "shop#visits.1", 'shop#odd "name.1',
    }  # fmt: skip
    heat = found["shop#films.h"]
    assert (heat.title, heat.fields["year"], heat.fields["price"]) == ("Heat", 1995, 9.5)
    assert heat.fields["references"] == ("director -> shop#people.1",) and heat.fields["table"] == "films"
    assert found["shop#visits.1"].fields["references"] == ("film -> shop#films.h",)
    said = {(one.item, one.text[:20]) for one in reading.notices}
    assert ("shop#films", "column poster holds ") in said and ("shop#visits", "it has no primary ke") in said
    assert [one.item for one in reading.failures] == ["shop#visits.2"]
    assert reading.counts["items"] == 7 and reading.counts["documents"] == 6 and Reading(address).expected() == 7


def test_tables_are_chosen_and_wrong_ones_named(address: str) -> None:
    assert set(read(f"{address}?table=people&table=films")[0]) == {
        "shop#people.1", "shop#people.2", "shop#films.h", "shop#films.m",
    }  # fmt: skip
    with pytest.raises(DataError, match=r"(?s)did you mean 'films'.*no table 'x'") as wrong:
        Reading(f"{address}?table=film&table=x")
    assert "film'" in str(wrong.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://ann:top@secret@localhost:port/x", "is not repeated here"),
        ("nosuch://ann:secret@localhost/x", "nosuch"),
        ("mysql+nodriver://ann:secret@localhost/x", "nodriver"),
        ("postgresql://ann:secret@127.0.0.1:1/x", "refused"),
    ],
)
def test_wrong_addresses_say_so_without_the_password(address: str, said: str) -> None:
    with pytest.raises((DataError, RequestError), match=said) as wrong:
        Reading(address)
    assert "secret" not in str(wrong.value)


def test_a_table_that_breaks_off_is_a_failure_and_the_others_are_read(address: str, tmp_path: Path) -> None:
    reading = Reading(f"{address}?table=films&table=people")
    with sqlite3.connect(tmp_path / "shop") as connection:
        connection.execute("DROP TABLE films")
    assert [one.id for one in reading] == ["shop#people.1", "shop#people.2"]
    assert [one.item for one in reading.failures] == ["shop#films"]
    assert reading.expected() == 3
    assert reading.unread("shop#films.h") and not reading.unread("shop#people.1")
