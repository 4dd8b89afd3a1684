from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from consilience.data.documents import Document
from consilience.data.ingestion.reading import Reading
from consilience.errors import DataError, RequestError

SCHEMA = """
CREATE TABLE cities(code TEXT PRIMARY KEY, name TEXT);
CREATE TABLE shops(id INTEGER PRIMARY KEY, name TEXT, city TEXT REFERENCES cities, mark TEXT REFERENCES marks(word));
CREATE TABLE marks(number INTEGER PRIMARY KEY, word TEXT UNIQUE);
CREATE TABLE stock(shop INTEGER REFERENCES shops(id), item TEXT, picture BLOB, PRIMARY KEY(shop, item)) WITHOUT ROWID;
CREATE TABLE visits(shop INTEGER, item TEXT, note TEXT, FOREIGN KEY(shop, item) REFERENCES stock(shop, item));
CREATE TABLE "odd ""name"(x TEXT);
CREATE VIRTUAL TABLE words USING fts5(body);
INSERT INTO cities VALUES ('bn', 'Bonn'), ('k', 'Köln');
INSERT INTO marks VALUES (1, 'm');
INSERT INTO shops VALUES (3, 'Corner', 'bn', 'm'), (4, 'Market', NULL, NULL);
INSERT INTO stock VALUES (3, 'tea', x'0102');
INSERT INTO visits VALUES (3, 'tea', 'again'), (NULL, 'tea', 'never');
INSERT INTO "odd ""name" VALUES ('value'), (CAST(x'47fc' AS TEXT));
INSERT INTO words VALUES ('full text');
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.executescript(SCHEMA)
    return tmp_path / "shop.db"


def read(path: str | Path) -> tuple[dict[str, Document], Reading]:
    reading = Reading(path)
    return {one.id: one for one in reading}, reading


def test_rows_have_keys_and_references(database: Path) -> None:
    before = database.read_bytes()
    found, reading = read(database)
    assert set(found) == {
        "shop.db#cities.bn", "shop.db#cities.k", "shop.db#marks.1", 'shop.db#odd "name.1', 'shop.db#odd "name.2',
        "shop.db#shops.3", "shop.db#shops.4", "shop.db#stock.3,tea", "shop.db#visits.1", "shop.db#visits.2",
        "shop.db#words.1",
    }  # fmt: skip
    assert found["shop.db#shops.3"].fields["references"] == ("city -> shop.db#cities.bn",)
    assert "references" not in found["shop.db#shops.4"].fields and "references" not in found["shop.db#visits.2"].fields
    assert found["shop.db#visits.1"].fields["references"] == ("shop, item -> shop.db#stock.3,tea",)
    assert found['shop.db#odd "name.2'].fields["x"] == "Gü"
    said = {one.item: one.text for one in reading.notices}
    assert "picture holds binary" in said["shop.db#stock"] and "not to the primary key" in said["shop.db#shops"]
    assert "Windows-1252" in said['shop.db#odd "name.2']
    assert not reading.failures and reading.counts["items"] == reading.counts["documents"] == len(found)
    assert Reading(database).expected() == len(found)
    assert database.read_bytes() == before and [one.name for one in database.parent.iterdir()] == ["shop.db"]


def test_tables_are_named_in_an_address(database: Path) -> None:
    found, _ = read(f"sqlite:///{database}?table=cities&table=marks")
    assert set(found) == {"shop.db#cities.bn", "shop.db#cities.k", "shop.db#marks.1"}
    database.rename(database.with_name("shop.data"))
    assert len(read(f"sqlite:///{database.with_name('shop.data')}")[0]) == 11
    with pytest.raises(DataError, match="did you mean 'cities'"):
        Reading(f"sqlite:///{database.with_name('shop.data')}?table=citie")
    with pytest.raises(RequestError, match="mode is unknown"):
        Reading(f"sqlite:///{database.with_name('shop.data')}?mode=rw")
    with pytest.raises(DataError, match="no such file"):
        Reading("sqlite:///nowhere.db")


def test_ids_stay_when_other_rows_go(database: Path) -> None:
    first, _ = read(database)
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM visits WHERE rowid = 1")
        connection.execute("DELETE FROM cities WHERE code = 'bn'")
    second, _ = read(database)
    assert set(first) - set(second) == {"shop.db#visits.1", "shop.db#cities.bn"} and set(second) < set(first)


def test_a_damaged_database_is_reported(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        rows = [(f"{n:05d}", "x" * 300) for n in range(200)]
        connection.executemany("INSERT INTO cities VALUES (?, ?)", rows)
    data = bytearray(database.read_bytes())
    data[-30_000:-10_000] = b"\xff" * 20_000
    database.write_bytes(data)
    found, reading = read(database)
    assert reading.failures and all("read to its end" in one.error or one.error for one in reading.failures)
    assert reading.counts["items"] == len(found) + reading.counts["empty"] + reading.counts["failed"]
