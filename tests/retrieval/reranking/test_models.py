"""Rerankers that ask a language model: a perfect one, a useless one, one that gives probabilities."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.llm import FunctionLLM
from consilience.llm.protocol import Capabilities, Message, Reply, TokenLogprob
from consilience.retrieval.reranking.combined import Cascade, Mixture
from consilience.retrieval.reranking.likelihood import Likelihood
from consilience.retrieval.reranking.listwise import Listwise, read_order
from consilience.retrieval.reranking.pairwise import Pairwise
from consilience.retrieval.reranking.pointwise import Pointwise
from consilience.retrieval.reranking.setwise import Setwise


def values_of(messages: list[Message]) -> list[int]:
    return [int(number) for number in re.findall(r"value (\d+)", messages[-1].content)]


def documents(values: list[int]) -> list[Document]:
    return [Document(f"d{place}", f"The value {value} of it.") for place, value in enumerate(values)]


def grade(messages: list[Message]) -> str:
    return str(values_of(messages)[0] / 10)


def better(messages: list[Message]) -> str:
    first, second = values_of(messages)
    return "A" if first > second else "Passage B" if second > first else "neither"


def order(messages: list[Message]) -> str:
    found = values_of(messages)
    return " > ".join(f"[{place + 1}]" for place in sorted(range(len(found)), key=lambda place: -found[place]))


def best(messages: list[Message]) -> str:
    found = values_of(messages)
    return f"[{found.index(max(found)) + 1}]"


ANSWERS = st.text(max_size=12) | st.sampled_from(["A", "B", "[2]", "[99]", "-1", "7"])
PERFECT: dict[str, Callable[[], Any]] = {
    "pointwise": lambda: Pointwise(FunctionLLM(grade)),
    "all pairs": lambda: Pairwise(FunctionLLM(better), how="all"),
    "sorted pairs": lambda: Pairwise(FunctionLLM(better)),
    "passes": lambda: Pairwise(FunctionLLM(better), how="passes", passes=99),
    "listwise": lambda: Listwise(FunctionLLM(order), window=99, step=50),
    "setwise": lambda: Setwise(FunctionLLM(best), top=99),
}


@pytest.mark.parametrize("name", PERFECT)
@given(values=st.lists(st.integers(0, 99), max_size=12, unique=True))
def test_a_perfect_model_gives_the_perfect_order(name: str, values: list[int]) -> None:
    found = PERFECT[name]().rerank("q", documents(values))
    assert [values[place] for place, _ in found] == sorted(values, reverse=True)
    assert all(one >= two for (_, one), (_, two) in pairwise(found))


@pytest.mark.parametrize("name", PERFECT)
@given(answers=st.lists(ANSWERS, min_size=1, max_size=5), count=st.integers(0, 9))
def test_a_useless_model_loses_nothing(name: str, answers: list[str], count: int) -> None:
    drawn = random.Random(0)
    reranker = PERFECT[name]()
    reranker.model = FunctionLLM(lambda messages: drawn.choice(answers))
    found = reranker.rerank("q", documents(list(range(count))))
    assert sorted(place for place, _ in found) == list(range(count))


def test_calls_are_counted() -> None:
    some = documents(random.Random(1).sample(range(100), 30))
    for reranker, calls in (
        (Pointwise(FunctionLLM(grade)), 30),
        (Pairwise(FunctionLLM(better), how="all"), 30 * 29),
        (Pairwise(FunctionLLM(better), how="passes", passes=3), 2 * (29 + 28 + 27)),
        (Listwise(FunctionLLM(order), window=10, step=5), 1 + math.ceil((30 - 10) / 5)),
    ):
        reranker.rerank("q", some)
        assert reranker.calls == calls


def test_windows_bring_the_best_to_the_front() -> None:
    values = random.Random(2).sample(range(1000), 50)
    found = Listwise(FunctionLLM(order), window=20, step=10).rerank("q", documents(values))
    assert [values[place] for place, _ in found[:10]] == sorted(values, reverse=True)[:10]
    top = Setwise(FunctionLLM(best), top=5).rerank("q", documents(values))
    assert [values[place] for place, _ in top[:5]] == sorted(values, reverse=True)[:5]
    rest = [place for place, _ in top[5:]]
    assert rest == sorted(rest)


def test_a_liking_for_the_first_place_is_a_draw() -> None:
    reranker = Pairwise(FunctionLLM(lambda messages: "A"), how="all")
    assert reranker.rerank("q", documents([1, 2, 3])) == [(0, 0.5), (1, 0.5), (2, 0.5)]


def test_probabilities_are_used_where_there_are_any() -> None:
    def spoken(request: Any) -> Reply:
        share = values_of(list(request.messages))[0] / 100
        top = {" Yes": math.log(share / 2), "yes": math.log(share / 2), "no": math.log(1 - share), "x": -9.0}
        return Reply("yes", logprobs=(TokenLogprob("yes", -1.0, top),))

    model = FunctionLLM(spoken, whole=True, capabilities=Capabilities(logprobs=True))
    found = Pointwise(model).rerank("q", documents([20, 90, 50]))
    assert [place for place, _ in found] == [1, 2, 0]
    assert [score for _, score in found] == pytest.approx([0.9, 0.5, 0.2])

    def scored(prompt: str, continuation: str) -> list[TokenLogprob]:
        value = int(re.findall(r"value (\d+)", prompt)[0])
        return [TokenLogprob(continuation, -1.0 if continuation == " yes" else -value / 10)]

    found = Pointwise(FunctionLLM(lambda messages: "", score=scored)).rerank("q", documents([20, 90, 50]))
    assert [place for place, _ in found] == [1, 2, 0]


def test_likelihood_is_the_mean_of_the_tokens() -> None:
    def scored(prompt: str, continuation: str) -> list[TokenLogprob]:
        assert continuation == " find it"
        value = int(re.findall(r"value (\d+)", prompt)[0])
        return [TokenLogprob(word, -float(value)) for word in continuation.split()]

    found = Likelihood(FunctionLLM(lambda messages: "", score=scored)).rerank("find it", documents([5, 2, 9]))
    assert found == [(1, -2.0), (0, -5.0), (2, -9.0)]
    with pytest.raises(RequestError, match="cannot score text"):
        Likelihood(FunctionLLM(grade))


@given(st.text(max_size=40), st.integers(1, 9))
def test_any_answer_is_an_order(text: str, count: int) -> None:
    assert sorted(read_order(text, count)) == list(range(count))


def test_stages_and_mixtures() -> None:
    first, second = (
        Pointwise(FunctionLLM(lambda messages: str(10 - values_of(messages)[0]))),
        Pointwise(FunctionLLM(grade)),
    )
    cascade = Cascade([(first, 4), (second, 2)])
    assert [place for place, _ in cascade.rerank("q", documents([4, 1, 3, 2]))] == [3, 1, 2, 0]
    assert cascade.calls == 6
    mixture = Mixture([(Pointwise(FunctionLLM(lambda messages: str(values_of(messages)[0]))), 1.0)], order=3.0)
    assert [place for place, _ in mixture.rerank("q", documents([1, 2, 9]))] == [0, 1, 2]
    for wrong in ([], [(first, -1.0)], [(first, 0.0)]):
        with pytest.raises(RequestError, match="mixture"):
            Mixture(wrong)
    with pytest.raises(RequestError, match="cascade"):
        Cascade([(first, 0)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pairwise(FunctionLLM(better), how="some"),  # type: ignore[arg-type]
        lambda: Pairwise(FunctionLLM(better), passes=0),
        lambda: Listwise(FunctionLLM(order), window=1),
        lambda: Listwise(FunctionLLM(order), window=4, step=5),
        lambda: Setwise(FunctionLLM(best), children=0),
    ],
)
def test_wrong_settings(make: Callable[[], object]) -> None:
    with pytest.raises(RequestError):
        make()
