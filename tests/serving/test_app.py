"""The routes: what they answer, what they refuse, what they keep to themselves."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from consilience.data.documents import Document
from consilience.errors import RequestError, StorageError
from consilience.retrieval.index import Index
from consilience.retrieval.searcher import Searcher
from consilience.serving.app import create_app
from consilience.serving.settings import Settings
from consilience.stores.embedded_reading import EmbeddedReader
from tests.serving.conftest import DOCUMENTS
from tests.serving.served import Client, served


def test_search_answers_as_the_searcher_does(client: Client, folder: Path) -> None:
    reply = client.search("sort lists", "dogs", k=2)
    with Index.open(folder) as index:
        wanted = Searcher(index).search(["sort lists", "dogs"], 2)
    assert reply.status == 200
    assert [one["query"] for one in reply.content["answers"]] == ["sort lists", "dogs"]
    assert [one["hits"] for one in reply.content["answers"]] == [[hit.to_dict() for hit in hits] for hits in wanted]
    bare = client.search("dogs", documents=False).content["answers"][0]["hits"][0]
    assert bare["id"] == "notes/dogs" and "document" not in bare


def test_an_answer_says_what_the_stores_count_and_what_the_query_is_for(client: Client) -> None:
    plain = client.search("sort lists").content["answers"][0]
    assert sum(plain["weights"].values()) == pytest.approx(1, abs=1e-3) and "route" not in plain
    routed = client.search('which says "small dog"', route=True).content["answers"][0]
    assert routed["route"]["kind"] == "phrase" and routed["route"]["why"] == ["quotes"]
    assert routed["weights"]["text"] > 0.3 and routed["hits"][0]["found"]["phrases"]["rank"] == 1
    refused = client.search("a", route=True, fusion="rrf")
    assert refused.status == 422 and "leave weights and fusion out" in refused.content["error"]


def test_a_store_that_fails_is_named_and_the_others_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, *arguments: object, **options: object) -> None:
        raise StorageError(f"{folder}: no disk")

    monkeypatch.setattr(EmbeddedReader, "search_edges", broken)
    with served(create_app(folder, Settings())) as client:
        reply = client.search("dogs", stores=["text", "graph"])
    answer = reply.content["answers"][0]
    assert reply.status == 200 and answer["failed"] == ["graph"] and answer["hits"][0]["id"] == "notes/dogs"
    assert str(folder) not in reply.text


def test_filters_stores_and_fusion(client: Client) -> None:
    assert client.ids("list", where="year > 2022") == ["lists"]
    assert client.ids("list", where={"year": {"<": 2022}}) == ["ports"]
    assert client.ids("list", where={"tags": "python"}, stores=["text"], fusion="rrf") == ["lists"]
    assert client.ids("list", where="year = 1900") == []
    assert sorted(client.ids("list", stores=["text"], weights={"text": 2})) == ["lists", "ports"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"queries": ["a"], "where": "year >"}, 400, "a value is missing after 'year >'"),
        ({"queries": ["a"], "stores": ["txet"]}, 400, "store 'txet' is not in this index; did you mean 'text'?"),
        ({"queries": ["a"], "fusion": "rff"}, 400, "did you mean 'rrf'?"),
        ({"queries": ["a"], "weights": {"minilm": 1}}, 400, "weight of 'minilm'"),
        ({"queries": ["a"], "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ({"queries": ["a"], "k": "3"}, 422, "k: Input should be a valid integer"),
        ({"queries": "a"}, 422, "queries: Input should be a valid list"),
        ({"queries": []}, 422, "queries: List should have at least 1 item"),
        ({"queries": ["a"] * 65}, 422, "queries: List should have at most 64 items"),
        ({"queries": [1], "kk": 1}, 422, "queries.0: Input should be a valid string\nkk: Extra inputs"),
        ({"queries": ["a"], "where": 3}, 422, "where"),
        ({"queries": ["\ud800"]}, 422, "queries.0: Value error, the text holds half of a surrogate pair"),
        ({"queries": ["a"], "stores": ["\ud800"]}, 422, "stores.0"),
        ({"queries": ["a"], "where": "\ud800"}, 422, "where"),
        ({"queries": ["a"], "where": {"a": "\ud800"}}, 422, "half of a surrogate pair"),
        ({"queries": ["a"], "where": {"a": ["x" * 1000] * 200}}, 422, "at most 100000"),
        ({"queries": ["a"] * 6, "k": 1000}, 422, "6 queries with 1000 hits each; at most 5000"),
        ([], 422, "body is a JSON object"),
    ],
)
def test_wrong_searches_are_explained(client: Client, body: Any, status: int, said: str) -> None:
    reply = client("POST", "/search", body)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert said in reply.content["error"]
    assert "Traceback" not in reply.text


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"queries": ["a"',
        b"\xff\xfe",
        b'{"queries": ["a"], "weights": {"text": NaN}}',
        b'{"queries": ["a"], "weights": {"text": 1e999}}',
        b'{"queries": ["a"], "k": ' + b"9" * 5000 + b"}",
        b'{"queries": ["a"], "where": ' + b'{"not": ' * 5000 + b"1" + b"}" * 5000 + b"}",
        b"[" * 100_000,
    ],
    ids=["empty", "open", "cut", "no-unicode", "nan", "infinite", "digits", "deep", "deeper"],
)
def test_what_is_no_json_is_refused(client: Client, raw: bytes) -> None:
    reply = client("POST", "/search", raw=raw, content_type="application/json")
    assert reply.status in (400, 422) and reply.content["error"]
    assert "Traceback" not in reply.text
    assert client.ids("dogs") == ["notes/dogs"]


def test_a_form_of_a_web_page_is_refused(client: Client) -> None:
    """Browsers send text/plain to other sites without asking; JSON they must ask for."""
    reply = client("POST", "/search", raw=b'{"queries": ["a"]}', content_type="text/plain")
    assert reply.status == 422 and "Content-Type: application/json" in reply.content["error"]
    refused = client("GET", "/index", Host="evil.example")
    assert refused.status == 400 and "Host" in refused.content["error"]
    assert client("GET", "/index", Host="localhost:9").status == 200


def test_documents_are_written_found_and_deleted(client: Client, folder: Path) -> None:
    document = {"id": "q", "text": "A quokka.", "title": "Quokkas", "fields": {"year": 2020, "tags": ["a", 1, True]}}
    assert client("POST", "/documents", {"documents": [document]}).content["added"] == 1
    assert client("POST", "/documents", {"documents": [document]}).content["unchanged"] == 1
    assert client("POST", "/documents", {"documents": [{**document, "title": ""}]}).content["replaced"] == 1
    assert client.ids("quokka") == ["q"]
    assert client("GET", "/documents/q").content == {key: document[key] for key in ("id", "text", "fields")}
    with Index.open(folder) as reader:  # another process would see the same
        assert [hit.id for hit in reader.search("quokka")] == ["q"]
    lost = client("DELETE", "/documents", {"ids": ["q", "qq"]})
    assert (lost.status, lost.content["error"]) == (404, "1 ids are not in the index: 'qq'; nothing was deleted")
    assert client("DELETE", "/documents", {"ids": ["q"]}).content["deleted"] == 1
    assert client.ids("quokka") == [] and client("GET", "/documents/q").status == 404


@pytest.mark.parametrize(
    ("documents", "status", "said"),
    [
        ([{"id": "a"}], 400, "a text or parts"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], 400, "'a' is given twice"),
        ([{"id": "a", "text": "x\x00"}], 400, "zero character"),
        ([{"id": "a", "text": "x", "fields": {"id": 1}}], 400, "name of a property"),
        ([{"id": "a", "text": "x", "fields": {"n": 1 << 63}}], 400, "64 bits"),
        ([{"id": "", "text": "x"}], 422, "documents.0.id"),
        ([{"id": "a", "text": "\ud800"}], 422, "documents.0.text"),
        ([{"id": "a", "text": "x", "fields": {"n": {"a": 1}}}], 422, "documents.0.fields.n"),
        ([{"id": "a", "parts": [{"text": "x", "kind": "song"}]}], 422, "documents.0.parts.0.kind"),
        ([], 422, "documents: List should have at least 1 item"),
    ],
)
def test_wrong_documents_change_nothing(client: Client, documents: Any, status: int, said: str) -> None:
    before = client("GET", "/index").content
    reply = client("POST", "/documents", {"documents": [{"id": "fine", "text": "x"}, *documents] if documents else []})
    assert reply.status == status and said.replace("documents.0", "documents.1") in reply.content["error"]
    assert client("GET", "/index").content == before


def test_documents_by_id(client: Client) -> None:
    for one in DOCUMENTS:
        assert client("GET", f"/documents/{one.id}").content == one.to_dict()
    assert client("GET", "/documents/notes%2Fdogs").content == DOCUMENTS[2].to_dict()
    for name in ("two\nlines", " ", "a b?c=d&e#f", "%2F", "../lists", "ü/☃", ".."):
        assert client("POST", "/documents", {"documents": [{"id": name, "text": "x"}]}).status == 200
        assert client("GET", "/documents/" + quote(name, safe="")).content["id"] == name
    assert client("GET", "/documents/nobody").content == {"error": "no document 'nobody' here", "kind": "NotFound"}


def test_a_server_for_reading_does_not_write_and_sees_the_writer(folder: Path) -> None:
    with served(create_app(folder, Settings())) as client:
        assert client("POST", "/documents", {"documents": [{"id": "a", "text": "x"}]}).status == 404
        assert client("DELETE", "/documents", {"ids": ["lists"]}).status == 404
        assert "post" not in client("GET", "/openapi.json").content["paths"].get("/documents", {})
        with Index.open(folder, write=True) as writer:
            writer.add([Document("new", "A quokka.")])
            assert client.ids("quokka") == ["new"]
            writer.delete(["new"])
            assert client.ids("quokka") == []


def test_health_index_and_metrics(client: Client) -> None:
    assert client("GET", "/health").content == {"live": True, "ready": True}
    assert client("GET", "/health/ready").status == client("GET", "/health/live").status == 200
    assert client("GET", "/index").content["documents"] == 3
    client.search("dogs")
    client("GET", "/documents/nobody")
    client("GET", "/some/path/as/it/came")
    text = client("GET", "/metrics").text
    for line in (
        'consilience_requests_total{method="POST",route="/search",status="200"} 1.0',
        'consilience_requests_total{method="GET",route="/documents/{id:document}",status="404"} 1.0',
        'consilience_requests_total{method="GET",route="other",status="404"} 1.0',
        "consilience_search_batch_queries_sum 1.0",
        "consilience_documents 3.0",
        "consilience_requests_in_flight 1.0",
    ):
        assert line in text.splitlines()
    assert "as/it/came" not in text


def test_no_page_that_loads_from_elsewhere(client: Client) -> None:
    assert [client("GET", path).status for path in ("/docs", "/redoc", "/")] == [404, 404, 404]
    assert client("GET", "/openapi.json").content["info"]["title"] == "Consilience"
    reply = client("PUT", "/search", {})
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert client("PUT", "/documents", {}).headers["allow"] == "DELETE, POST"
    assert client("PUT", "/documents/a/b", {}).headers["allow"] == "GET"


def test_an_incident_says_nothing_and_the_log_everything(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for raised in (StorageError("/secret-place/x: no space left"), ZeroDivisionError("/secret-place")):

        def fails(self: Searcher, *_: object, raised: Exception = raised, **__: object) -> None:
            raise raised

        monkeypatch.setattr(Searcher, "answer", fails)
        with caplog.at_level(logging.INFO, "consilience.serving"):
            reply = client.search("a secret question")
        assert reply.status == 500 and reply.content["incident"] in reply.content["error"]
        assert "secret" not in reply.text and type(raised).__name__ not in reply.text
        record = next(one for one in caplog.records if reply.content["incident"] in one.getMessage())
        assert record.exc_info is not None and record.exc_info[1] is raised
    lines = [one.getMessage() for one in caplog.records if one.name == "consilience.serving"]
    assert any(line.startswith("POST /search 500 ") and line.endswith(" ms") for line in lines)
    assert not any("question" in line for line in lines)


def test_a_search_that_takes_too_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, blocked = Searcher.answer, threading.Event()

    def slow(self: Searcher, queries: list[str], *arguments: Any, **options: Any) -> Any:
        if "slow" in queries:
            blocked.wait(30)
        return real(self, queries, *arguments, **options)

    app = create_app(folder, Settings(seconds=0.3, waiting=1, together=1))
    monkeypatch.setattr(Searcher, "answer", slow)
    with served(app) as client:
        late = client.search("slow")
        assert (late.status, late.content["kind"]) == (504, "Timeout")
        replies: list[Any] = []
        threads = [threading.Thread(target=lambda: replies.append(client.search("dogs"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(reply.status for reply in replies)
        assert set(statuses) <= {503, 504} and statuses.count(503) >= 1
        busy = next(reply for reply in replies if reply.status == 503)
        assert busy.headers["retry-after"] == "1" and busy.content["kind"] == "Busy"
        assert client("GET", "/health").status == 200
        blocked.set()
        assert client.ids("dogs") == ["notes/dogs"]


def test_what_is_wrong_is_said_before_anything_listens(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RequestError, match="no index here"):
        create_app(tmp_path / "nowhere")
    with Index.open(folder, write=True), pytest.raises(RequestError, match="is writing to this index"):
        create_app(folder, Settings(write=True))
    create_app(folder, Settings(write=True))


def test_writes_wait_for_each_other_but_not_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, blocked = Index.upsert, threading.Event()

    def slow(self: Index, documents: Any, **options: Any) -> Any:
        assert blocked.wait(30)
        return real(self, documents, **options)

    monkeypatch.setattr(Index, "upsert", slow)
    with served(create_app(folder, Settings(write=True, rate=0))) as client:
        replies: list[Any] = []

        def write(n: int) -> None:
            replies.append(client("POST", "/documents", {"documents": [{"id": f"new{n}", "text": "x"}]}))

        threads = [threading.Thread(target=write, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        while len(replies) < 4:
            time.sleep(0.01)
        assert client.ids("dogs") == ["notes/dogs"]  # reading goes on
        blocked.set()
        for thread in threads:
            thread.join()
        assert sorted(reply.status for reply in replies) == [200] * 16 + [503] * 4
        assert client("GET", "/index").content["documents"] == 3 + 16


def test_many_values_of_a_filter(client: Client) -> None:
    assert client.ids("list", where={"year": {"in": [2021] + [1] * 30_000}}) == ["ports"]
    assert client.ids("list", where={"id": {"in": ["ports"] + ["a"] * 15_000}}) == ["ports"]
