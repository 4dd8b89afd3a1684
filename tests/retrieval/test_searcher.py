"""The Searcher: weights by query, the graph among the stores, reranking, stores that fail or are late."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.documents import Document
from consilience.errors import RecipeError, RequestError, StorageError, WorkError
from consilience.retrieval.index import Index
from consilience.retrieval.linking import entities_of
from consilience.retrieval.searcher import Searcher
from consilience.retrieval.weighting import default_weights
from consilience.stores.table import Edge
from consilience.stores.vectors import Found

TEXTS = {
    "ann": "Ann likes quokkas and marmalade.",
    "bob": "Bob likes tea and marmalade.",
    "cy": "Cy likes chess.",
    "dora": "Dora paints boats at night.",
}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index") as made:
        edges = [Edge("Dark City", "directed by", "Alex Proyas", "dora"), Edge("Alex Proyas", "born in", "Cairo", "cy")]
        made.upsert([Document(name, text) for name, text in TEXTS.items()], edges=edges)
        yield made


def found(count: int, coverage: float | None = None) -> Found:
    return Found(np.arange(count), np.linspace(1, 0, count).astype(np.float32), coverage)


@given(st.floats(0, 1), st.integers(0, 3), st.integers(0, 3))
def test_weights_add_up_and_rise_with_coverage(coverage: float, first: int, second: int) -> None:
    stores = ["text", "a", "b"]
    lists = {"text": found(2, coverage), "a": found(first), "b": found(second)}
    weights = default_weights(lists, stores)
    assert sum(weights.values()) == pytest.approx(1)
    assert all(weights[name] == 0 for name, count in (("a", first), ("b", second)) if not count and first + second)
    more = default_weights({**lists, "text": found(2, min(coverage + 0.1, 1.0))}, stores)
    assert more["text"] >= weights["text"]


@given(st.floats(0, 1), st.integers(1, 5), st.floats(0, 0.9))
def test_words_count_more_where_they_find_few_documents_before_all_others(
    coverage: float, few: int, behind: float
) -> None:
    def words_count(least: float) -> float:
        scores = np.array([5.0] * few + [5 * least] * (8 - few), np.float32)
        return default_weights({"text": Found(np.arange(8), scores, coverage), "a": found(3)}, ["text", "a"])["text"]

    alone, usual = words_count(0.0), words_count(behind)
    assert alone >= usual >= words_count(1.0)
    assert alone > words_count(0.7) or coverage < 1e-6


def test_coverage_is_the_share_of_telling_words(index: Index) -> None:
    covered = [one.coverage for one in index.stores.search_text(["Who likes quokkas?", "likes zebras", "who?"], 3)]
    assert covered[0] == pytest.approx(1, abs=1e-6)
    assert covered[1] is not None and 0 < covered[1] < 0.5
    assert covered[2] is None or covered[2] == 0


def test_documents_behind_the_edges_of_an_entity_are_found(index: Index) -> None:
    hits = Searcher(index).search(["Who directed Dark City?"], 4)[0]
    assert hits[0].id == "dora"
    assert set(hits[0].found) == {"graph"}
    assert "cy" in [hit.id for hit in hits], "two edges away"
    assert all("graph" not in hit.found for hit in Searcher(index).search(["who likes quokkas"], 4)[0])


def test_entities_are_runs_of_words() -> None:
    assert entities_of("") == []
    assert entities_of("Dark-City O'Hara") == ["Dark-City O'Hara", "dark-city o'hara", "Dark-City", "dark-city",
                                               "O'Hara", "o'hara"]  # fmt: skip


class Backwards:
    """Puts the last first."""

    def rerank(self, query: str, documents: Sequence[Document]) -> list[tuple[int, float]]:
        return [(place, float(place)) for place in reversed(range(len(documents)))]


def test_reranking_reorders_the_head_and_says_where_hits_were(index: Index) -> None:
    plain = [hit.id for hit in Searcher(index, stores=["text"]).search(["likes marmalade quokkas"], 3)[0]]
    hits = Searcher(index, stores=["text"], rerank=Backwards(), rerank_depth=2).search(["likes marmalade quokkas"], 3)[
        0
    ]
    assert [hit.id for hit in hits] == [plain[1], plain[0], plain[2]]
    assert hits[0].fused is not None and hits[0].fused.rank == 2
    assert hits[0].to_dict()["fused"]["rank"] == 2
    assert [hit.id for hit in Searcher(index, rerank=Backwards()).search(["zzz"], 3)[0]] == []


def test_a_store_that_fails_is_named_and_the_others_answer(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> list[Found]:
        raise StorageError("the disk is gone")

    monkeypatch.setattr(index.stores, "search_text", broken)
    searcher = Searcher(index)
    answer = searcher.answer(["Dark City"], 2)[0]
    assert answer.partial and answer.failed == {"text": "the disk is gone"}
    assert [hit.id for hit in answer.hits] == ["dora", "cy"]
    assert answer.to_dict()["failed"] == {"text": "the disk is gone"}
    with pytest.raises(StorageError, match="disk is gone"):
        searcher.search(["Dark City"], 2)
    with pytest.raises(WorkError, match="text: the disk is gone"):
        Searcher(index, stores=["text"]).answer(["Dark City"])


def test_a_store_that_is_late_is_left_out(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def slow(*_: object, **__: object) -> list[Found]:
        answered.wait(60)
        return [found(1)]

    monkeypatch.setattr(index.stores, "search_edges", slow)
    try:
        answer = Searcher(index, seconds=2).answer(["quokkas in Dark City"], 2)[0]
        assert answer.failed == {"graph": "no answer within 2 s"}, "it is still waiting"
        assert [hit.id for hit in answer.hits] == ["ann"]
        with pytest.raises(WorkError, match="allow more"):
            Searcher(index, stores=["graph"], seconds=0.1).search(["Dark City"])
    finally:
        answered.set()


def test_answers_explain_themselves(index: Index) -> None:
    answer = Searcher(index).answer(["Who likes quokkas?"], 1)[0]
    assert set(answer.weights) == {"text", "graph"} and answer.weights["graph"] == 0
    assert {"text", "graph", "fusion"} <= set(answer.seconds)
    assert answer.to_dict()["hits"][0]["id"] == "ann"


def test_wrong_settings_are_refused_before_searching(index: Index) -> None:
    with pytest.raises(RequestError, match="rerank_depth 0: at least 1"):
        Searcher(index, rerank=Backwards(), rerank_depth=0)
    with pytest.raises(RequestError, match="seconds 0"):
        Searcher(index, seconds=0)
    with pytest.raises(RecipeError, match="fusion method 'rff' is unknown"):
        Searcher(index, fusion="rff")
    with pytest.raises(RecipeError, match="option 'floors' is unknown"):
        Searcher(index, floors=1)


def test_a_filter_for_every_query(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = Searcher(index, stores=["text"])
    queries = ["quokka", "Dark City", "quokkas in the city", "city"]
    filters = ["id = 'ann'", None, {"id": "ann"}, "id != 'ann'"]
    alone = [searcher.search([query], where=one)[0] for query, one in zip(queries, filters, strict=True)]
    asked: list[int] = []
    real = index.stores.search_text
    monkeypatch.setattr(index.stores, "search_text", lambda q, *a, **o: asked.append(len(q)) or real(q, *a, **o))
    assert searcher.search(queries, where=filters) == alone
    assert asked == [2, 1, 1], "queries with the same filter are one batch, however it is written"
    with pytest.raises(RequestError, match="1 filters for 4 queries"):
        searcher.search(queries, where=[None])
