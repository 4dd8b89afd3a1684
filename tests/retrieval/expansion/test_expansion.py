"""Operators on queries, alone and in the Searcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.documents import Document
from consilience.errors import BudgetError, RequestError
from consilience.llm import FunctionLLM
from consilience.retrieval.expansion import (
    Decompose,
    Hypothetical,
    MultiQuery,
    RelevanceFeedback,
    Rewrite,
    Variation,
)
from consilience.retrieval.expansion.protocol import combined
from consilience.retrieval.index import Index
from consilience.retrieval.searcher import Searcher
from consilience.stores.vectors import Found

TEXTS = {
    "a": "A puppy is a young dog, and every dog barks.",
    "b": "Dogs bark at night.",
    "c": "A kitten is a young cat.",
    "d": "The tax law of 1990.",
}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index") as made:
        made.add([Document(name, text) for name, text in TEXTS.items()])
        yield made


def test_feedback_finds_what_has_none_of_the_words(index: Index) -> None:
    assert [hit.id for hit in Searcher(index).search(["puppy"], 4)[0]] == ["a"]
    answer = Searcher(index, expand=RelevanceFeedback(index, documents=1, words=3)).answer(["puppy"], 4)[0]
    assert [hit.id for hit in answer.hits][:2] == ["a", "b"]
    assert answer.queries and "dog" in answer.queries[0].split() and "expand" in answer.seconds


def test_feedback_without_hits_or_words_is_the_query(index: Index) -> None:
    feedback = RelevanceFeedback(index)
    for query in ("zebra", "", "who is it"):
        assert feedback(query) == [Variation(query)]
    with pytest.raises(RequestError, match="weight 1"):
        RelevanceFeedback(index, weight=1)


def test_variations_of_a_model(index: Index) -> None:
    asked: list[str] = []

    def said(messages: Any) -> str:
        asked.append(messages[-1].content)
        return '1. young dogs\n2) "tax law"\n- young dogs\n\n3. cats\n4. more'

    several = MultiQuery(FunctionLLM(said), weight=0.6)("puppies {0}")
    assert [one.text for one in several] == ["puppies {0}", "young dogs", "tax law", "cats"]
    assert [one.weight for one in several] == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert "puppies {0}" in asked[0]
    assert [one.text for one in Decompose(FunctionLLM(said), count=1, weight=1)("q")] == ["young dogs"]
    assert Hypothetical(FunctionLLM(said), weight=1)("q")[0].text.startswith("1. young dogs 2)")
    hits = Searcher(index, expand=MultiQuery(FunctionLLM(said))).search(["puppies"], 4)[0]
    assert {"b", "d"} <= {hit.id for hit in hits}


@pytest.mark.parametrize("make", [Rewrite, Hypothetical, MultiQuery, Decompose])
@given(answer=st.text(max_size=60))
def test_any_answer_leaves_something_to_search_for(make: Callable[..., Any], answer: str) -> None:
    for weight in (0.5, 1.0):
        found = make(FunctionLLM(lambda messages: answer), weight=weight)("query")
        assert found and all(one.text and one.weight > 0 for one in found)
        assert sum(one.weight for one in found) == pytest.approx(1)


def test_a_model_that_fails_leaves_the_query(index: Index) -> None:
    def spent(messages: object) -> str:
        raise BudgetError("all calls are spent")

    searcher = Searcher(index, expand=Rewrite(FunctionLLM(spent)))
    answer = searcher.answer(["tax law"], 2)[0]
    assert answer.failed == {"expand": "all calls are spent"} and answer.hits[0].id == "d"
    with pytest.raises(BudgetError):
        searcher.search(["tax law"], 2)


def test_lists_of_variations_become_one() -> None:
    one = Found(np.array([1, 2]), np.array([3.0, 1.0], np.float32), 0.5)
    two = Found(np.array([2, 7]), np.array([9.0, 8.0], np.float32), 0.9)
    assert combined([(one, 1.0)]) is one
    both = combined([(one, 1.0), (two, 3.0)])
    assert both.numbers.tolist() == [2, 1, 7] and both.coverage == 0.9
    assert both.scores == pytest.approx([0.75, 0.25, 0.0])


@pytest.mark.parametrize("settings", [{"weight": 0}, {"weight": 1.5}, {"count": 0}])
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        MultiQuery(FunctionLLM(lambda messages: ""), **settings)
