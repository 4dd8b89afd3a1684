"""Which stores a query is for, what that does to the weights, and a search that opens no socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.retrieval.index import Index
from consilience.retrieval.relational import Rows
from consilience.retrieval.routing import KINDS, LearnedRouter, StoreRouter
from consilience.retrieval.searcher import Searcher
from consilience.stores.table import Edge
from tests.retrieval.relational.films import filled

QUESTIONS = {
    'which text says "two things in this city"': "phrase",
    "crime films after 1990": "rows",
    "how many films are from 1995": "rows",
    "what is a quokka a kind of": "relation",
    'which film of 1995 says "two things"': "mixed",
    "why do people like long stories": "meaning",
    "what kind of person likes stories": "meaning",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with filled(tmp_path_factory.mktemp("films") / "index") as index:
        index.add([Document("quokka", "Quokkas smile.")], edges=[Edge("quokka", "kind of", "wallaby", "quokka")])
        yield index


@pytest.fixture(scope="module")
def router(index: Index) -> StoreRouter:
    return StoreRouter(index, rows=Rows(index, names={"movies": ["film"]}))


@pytest.mark.parametrize(("question", "kind"), QUESTIONS.items())
def test_rules(router: StoreRouter, question: str, kind: str) -> None:
    found = router(question)
    assert found.kind == kind and bool(found.weights) == (kind != "meaning") and 0 < found.confidence <= 1


def test_a_route_decides_the_weights_and_is_told(index: Index, router: StoreRouter) -> None:
    assert router.rows is not None
    searcher = Searcher(index, more={"rows": router.rows}, route=router)
    answers = searcher.answer(list(QUESTIONS), 3)
    for answer, kind in zip(answers, QUESTIONS.values(), strict=True):
        assert answer.route is not None and answer.route.kind == kind == answer.to_dict()["route"]["kind"]
        assert "route" in answer.seconds and sum(answer.weights.values()) == pytest.approx(1)
    rows = answers[1]
    assert rows.weights["rows"] == max(rows.weights.values()) > 0.5
    assert {hit.document.title for hit in rows.hits[:2]} == {"Heat", "Collateral"}
    assert answers[3].hits[0].id == "quokka" and answers[4].hits[0].document.title == "Heat"
    with pytest.raises(RequestError, match="route: it chooses the weights"):
        Searcher(index, route=router, fusion="rrf")


def test_little_confidence_leaves_the_default_weights(index: Index, router: StoreRouter) -> None:
    careful = StoreRouter(index, rows=router.rows, threshold=0.95)
    assert not careful("crime films after 1990").weights
    with pytest.raises(RequestError, match="threshold 2"):
        StoreRouter(index, threshold=2)


def test_a_router_learns_from_examples(router: StoreRouter) -> None:
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[len(text) / 50] for text in texts], np.float32)

    known = [kind for kind in KINDS for _ in range(3)]
    queries = [
        *(f'where is "{words}" said' for words in ("in this city", "a film of", "two things")),
        *(f"crime films {when}" for when in ("after 1990", "before 2000", "of 1995")),
        *(f"what is a quokka {words}" for words in ("a kind of", "related to", "a type of")),
        *(f'the film of {year} with "{words}"' for year, words in ((1995, "a film"), (2009, "moon"), (1972, "of 19"))),
        "why sort lists", "how to be happy", "the meaning of dreams",
    ]  # fmt: skip
    learned = LearnedRouter.fit(router, encode, queries, known)
    assert learned('who said "ten lists"').kind == "phrase" and learned("drama films after 1971").kind == "rows"
    assert learned("what is a wallaby a kind of").kind == "relation"
    assert learned('who said "ten lists"').why[0].startswith("learned: phrase")
    with pytest.raises(RequestError, match="kinds poem are unknown"):
        LearnedRouter.fit(router, encode, ["a", "b"], ["poem", "phrase"])


def test_a_search_opens_no_socket(index: Index, router: StoreRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    assert router.rows is not None
    searcher = Searcher(index, more={"rows": router.rows}, route=router)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert searcher.search(list(QUESTIONS), 2)
