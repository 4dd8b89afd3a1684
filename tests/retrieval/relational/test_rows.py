"""The schema of rows after commits: what is new is read, and what went is forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from consilience.data.documents import Document
from consilience.retrieval.index import Index
from consilience.retrieval.relational import Rows
from consilience.retrieval.relational.schema import read_schema
from consilience.stores.embedded import EmbeddedStores


def row(number: int, name: str, year: int) -> Document:
    return Document(f"films.csv#{number}", name, title=name, fields={"year": year}, source="films.csv")


def test_a_commit_that_adds_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = EmbeddedStores.documents

    def counted(self: EmbeddedStores, numbers: Iterable[int]) -> dict[int, Document]:
        wanted = list(numbers)
        read.append(len(wanted))
        return real(self, wanted)

    monkeypatch.setattr(EmbeddedStores, "documents", counted)
    with Index.create(tmp_path / "index") as index:
        index.add([row(n, f"Film {n}", 1950 + n) for n in range(30)])
        rows = Rows(index)
        first = rows.tables["films.csv"]
        assert (first.count, first.columns["year"].low, first.columns["year"].high) == (30, 1950, 1979)
        assert rows.tables["films.csv"] is first and read == [30]
        index.add([row(30, "Solaris", 2002), Document("note", "No row.")])
        second = rows.tables["films.csv"]
        assert read == [30, 2]
        assert (second.count, second.columns["year"].high) == (31, 2002)
        assert (first.count, first.columns["year"].high) == (30, 1979)
        index.delete(["films.csv#30"])
        index.upsert([row(0, "Film 0", 1900)])
        third = rows.tables["films.csv"]
        assert (third.count, third.columns["year"].low, third.columns["year"].high) == (30, 1900, 1979)
        assert "solaris" not in third.columns["title"].values
        assert facts(rows.tables) == facts(read_schema(index))


def facts(tables: dict[str, Any]) -> dict[str, Any]:
    return {name: (table.count, table.columns) for name, table in tables.items()}
