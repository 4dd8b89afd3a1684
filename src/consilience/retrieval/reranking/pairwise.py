"""Documents compared two by two by a language model, in both orders, so that its liking for a place cancels out.

Use: small models, which compare better than they grade. Avoid: long lists with "all": two calls for every pair.

Source: Qin et al. 2023, Large Language Models are Effective Text Rankers with Pairwise Ranking Prompting (PRP).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cmp_to_key
from itertools import combinations
from typing import Literal

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.llm import LLM
from consilience.retrieval.reranking.protocol import Ranked, answer_of, by_order, by_score, clipped

__all__ = ["Pairwise"]

_ASK = (
    "Query: {query}\n\nPassage A: {first}\n\nPassage B: {second}\n\nWhich passage answers the query better? Say only A "
    "or B.\nAnswer:"
)


class Pairwise:
    """A language model asked about pairs.

    >>> from consilience.llm import FunctionLLM
    >>> model = FunctionLLM(lambda messages: "A" if "dog" in messages[0].content.split("Passage B")[0] else "B")
    >>> reranker = Pairwise(model)
    >>> [place for place, _ in reranker.rerank("puppies", [Document("a", "Tax law."), Document("b", "A small dog.")])]
    [1, 0]

    how: "all" pairs, n (n - 1) calls, the score is the share of comparisons won; "sort", some n log n comparisons;
    "passes", from the end to the front, `passes` times: 2 (n - 1) calls each, after which so many at the front are
    right. Where the two orders of a pair disagree it is a draw.
    """

    def __init__(self, model: LLM, *, how: Literal["all", "sort", "passes"] = "sort", passes: int = 10) -> None:
        if how not in ("all", "sort", "passes"):
            raise RequestError(f"pairwise: how {how!r}; there are all, sort and passes")
        if passes < 1:
            raise RequestError(f"pairwise: {passes} passes; at least 1")
        self.model, self.how, self.passes, self.calls = model, how, passes, 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`."""
        texts = [clipped(document) for document in documents]
        if len(texts) < 2:
            return by_order(range(len(texts)))
        if self.how == "all":
            won = [0.0] * len(texts)
            for first, second in combinations(range(len(texts)), 2):
                better = self._compare(query, texts[first], texts[second])
                won[first] += (1 + better) / 2
                won[second] += (1 - better) / 2
            return by_score([value / (len(texts) - 1) for value in won])
        if self.how == "sort":

            def against(one: int, other: int) -> int:
                return -self._compare(query, texts[one], texts[other])

            return by_order(sorted(range(len(texts)), key=cmp_to_key(against)))
        order = list(range(len(texts)))
        for done in range(min(self.passes, len(order) - 1)):
            for place in range(len(order) - 1, done, -1):
                if self._compare(query, texts[order[place]], texts[order[place - 1]]) > 0:
                    order[place - 1], order[place] = order[place], order[place - 1]
        return by_order(order)

    def _compare(self, query: str, one: str, other: str) -> int:
        """Return 1 where the first is better, -1 where the second is, 0 for a draw."""
        first, second = self._asked(query, one, other), self._asked(query, other, one)
        return first if first == -second else 0

    def _asked(self, query: str, first: str, second: str) -> int:
        self.calls += 1
        asked = _ASK.format(query=query, first=first, second=second)
        answer = answer_of(self.model, asked).strip().upper().removeprefix("PASSAGE ")[:1]
        return {"A": 1, "B": -1}.get(answer, 0)
