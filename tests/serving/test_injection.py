"""What is sent as a filter, an id, a query, a store or a method does nothing but what it says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.retrieval.index import Index
from consilience.serving.app import create_app
from consilience.serving.settings import Settings
from consilience.stores.embedded import EmbeddedStores
from tests.serving.conftest import DOCUMENTS
from tests.serving.served import Client, served

PIECES = [
    *(
        "'",
        '"',
        "`",
        ";",
        "--",
        "/*",
        "*/",
        "\\",
        "%",
        "$",
        "?",
        "?1",
        ":a",
        "@a",
        "\x00",
        "\n",
        "(",
        ")",
        "[",
        "]",
        ".",
    ),
    *(" or 1=1 ", " and ", " not ", " in ", " is null ", " = ", "=", "<", ",", "''", '""', "1", "0x41", "1e999"),
    *("DROP TABLE documents", "DELETE FROM documents", "UNION SELECT text FROM documents", "sqlite_master", "PRAGMA "),
    *("load_extension('x')", "ATTACH DATABASE '/tmp/x' AS x", "year", "id", "lang", "number", "removed", "$.year"),
    *("../../etc/passwd", "%2e%2e/", "{{7*7}}", "${jndi:ldap://x}", "<script>", "__class__", "os.system", "text:*"),
]
hostile = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), min_size=1, max_size=8).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | hostile,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(hostile | st.sampled_from(["and", "or", "not", "in", "=", "null", "year"]), inner, max_size=3)
    ),
    max_leaves=6,
)
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def open_door() -> Iterator[tuple[Client, Path]]:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "index"
        with Index.create(place) as index:
            index.add(DOCUMENTS)
        with served(create_app(place, Settings(write=True, rate=0))) as client:
            yield client, place


def state(place: Path) -> Any:
    with EmbeddedStores(place) as stores:
        found = stores.table.by_id(stores.all_ids())
        documents = stores.documents(number for number, _ in found.values())
        return stores.stats()["generation"], {one.id: one.to_dict() for one in documents.values()}


def sent(client: Client, method: str, path: str, content: Any) -> int:
    reply = client(method, path, content)
    assert (
        reply.status < 500
        and "Traceback" not in reply.text
        and "sqlite" not in reply.text.lower().replace("sqlite_master", "")
    ), (reply, content)
    json.loads(reply.text)
    return reply.status


@few
@given(where=hostile | values.filter(lambda value: isinstance(value, dict)), query=hostile)
def test_filters_and_queries(open_door: tuple[Client, Path], where: Any, query: str) -> None:
    client, place = open_door
    before = state(place)
    sent(client, "POST", "/search", {"queries": [query], "where": where})
    assert state(place) == before


@few
@given(text=hostile)
def test_a_value_is_only_a_value(open_door: tuple[Client, Path], text: str) -> None:
    """Whatever a text holds, comparing with it finds the documents that are equal to it: none."""
    client, _ = open_door
    for where in (
        {"lang": text},
        {"id": {"in": [text]}},
        {"source": text},
        f"lang = '{text.replace(chr(39), chr(39) * 2)}'",
    ):
        reply = client.search("list", where=where)
        assert reply.status == 400 or (reply.status == 200 and reply.content["answers"][0]["hits"] == [])


@few
@given(name=hostile)
def test_names(open_door: tuple[Client, Path], name: str) -> None:
    client, place = open_door
    before = state(place)
    assert sent(client, "POST", "/search", {"queries": ["a"], "fusion": name}) in (400, 422)
    assert sent(client, "POST", "/search", {"queries": ["a"], "stores": [name]}) in (400, 422)
    assert sent(client, "POST", "/search", {"queries": ["a"], "weights": {name: 1}}) in (400, 422)
    sent(client, "POST", "/search", {"queries": ["a"], "where": {name: 1}})
    assert sent(client, "DELETE", "/documents", {"ids": [name]}) in (404, 422)
    assert state(place) == before


@few
@given(name=hostile)
def test_ids(open_door: tuple[Client, Path], name: str) -> None:
    client, place = open_door
    before = state(place)
    path = "/documents/" + quote(name, safe="")
    assert client("GET", path).status in (404, 200) and state(place) == before
    if sent(client, "POST", "/documents", {"documents": [{"id": name, "text": "A quokka."}]}) == 200:
        assert client("GET", path).content == {"id": name, "text": "A quokka."}
        assert client.ids("quokka") == [name]
        assert sent(client, "DELETE", "/documents", {"ids": [name]}) == 200
        assert client("GET", path).status == 404
    assert state(place)[1] == before[1]
