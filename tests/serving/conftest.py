from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consilience.data.documents import Document, Part
from consilience.retrieval.index import Index
from consilience.serving.app import create_app
from consilience.serving.settings import Settings
from tests.serving.served import Client, served

DOCUMENTS = [
    Document("lists", "Sort a list in place.", title="Lists", fields={"year": 2024, "tags": ("python", "lists")}),
    Document("ports", "List open ports.", fields={"year": 2021, "lang": "en"}),
    Document("notes/dogs", (Part("A small dog."), Part("dog | 3", kind="table", page=2)), fields={"year": 2019}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "secret-place" / "index"
    with Index.create(place) as index:
        index.add(DOCUMENTS)
    return place


@pytest.fixture
def client(folder: Path) -> Iterator[Client]:
    """A server of words that can be written to."""
    with served(create_app(folder, Settings(write=True, rate=0))) as found:
        yield found
