"""Pipelines in one line: search, rerank, answer; what is missing is said before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from consilience.data.contexts import Context, Question
from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.llm import FunctionLLM
from consilience.retrieval.index import Index
from consilience.retrieval.pipelines import pipeline
from consilience.retrieval.reranking.protocol import Ranked, by_order


class Backwards:
    calls = 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        return by_order(list(reversed(range(len(documents)))))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with Index.create(tmp_path / "index") as index:
        index.add([Document("a", "The puppy is a young dog.", title="Dogs"), Document("b", "A dog barks at a dog.")])
    return tmp_path / "index"


def test_search_then_rerank_then_answer(place: Path) -> None:
    asked: list[str] = []

    def answer(messages: list[object]) -> str:
        asked.append(messages[-1].content)  # type: ignore[attr-defined]
        return " puppy "

    question = Question("what is a young dog", ("puppy",))
    searched = pipeline("search", place)(question)[0]
    assert [one.id for one in searched.contexts] == ["a", "b"] and searched.contexts[0].title == "Dogs"
    assert [one.has_answer for one in searched.contexts] == [True, False] and searched.predicted is None
    made = pipeline("rag", place, reranker=Backwards(), generator=FunctionLLM(answer), passages=1)
    found = made([question, "dog"])
    assert [one.id for one in found[0].contexts] == ["b", "a"] and found[0].predicted == "puppy"
    assert "A dog barks" in asked[0] and "puppy" not in asked[0] and question.text in asked[0]


def test_contexts_that_come_with_questions_are_reranked(place: Path) -> None:
    asked = Question("q", (), (Context(3, text="x", score=1.0), Context("d", text=None)))
    found = pipeline("rerank", reranker=Backwards(), k=1)([asked, Question("none")])
    assert [one.id for one in found[0].contexts] == ["d"] and found[1].contexts == ()


def test_what_is_missing_is_said_at_once() -> None:
    with pytest.raises(RequestError, match=r"(?s)unknown.*did you mean.*k 0"):
        pipeline("searhc", k=0)
    with pytest.raises(RequestError, match="needs a generator"):
        pipeline("rag", "nowhere")
    with pytest.raises(RequestError, match="needs an index"):
        pipeline("search")
    with pytest.raises(RequestError, match=r"(?s)needs a reranker.*fusion is an option"):
        pipeline("rerank", fusion="rrf")
