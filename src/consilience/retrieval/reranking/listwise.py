"""Documents put in order by a language model that sees many at once, window by window from the end to the front.

Use: large instructed models; few calls. Avoid: small ones, which repeat numbers or keep the order given.

Source: Sun et al. 2023, Is ChatGPT Good at Search? (RankGPT).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.llm import LLM
from consilience.retrieval.reranking.protocol import Ranked, answer_of, by_order, clipped

__all__ = ["Listwise", "read_order"]

_ASK = (
    "Query: {query}\n\n{passages}\n\nPut the {count} passages in the order in which they answer the query, the best "
    "first. Write only their numbers, like [2] > [1] > [3].\nOrder:"
)


class Listwise:
    """A language model asked for the order of windows of documents.

    >>> from consilience.llm import FunctionLLM
    >>> reranker = Listwise(FunctionLLM(lambda messages: "[2] > [1]"))
    >>> [place for place, _ in reranker.rerank("puppies", [Document("a", "Tax law."), Document("b", "A small dog.")])]
    [1, 0]

    window: documents of a call; step: by how many the next one is nearer to the front. n documents take
    1 + ceil((n - window) / step) calls. What an answer leaves out keeps its order behind the rest.
    """

    def __init__(self, model: LLM, *, window: int = 20, step: int = 10) -> None:
        if window < 2 or not 1 <= step <= window:
            raise RequestError(f"listwise: window {window}, step {step}; at least 2, and a step from 1 to the window")
        self.model, self.window, self.step, self.calls = model, window, step, 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`."""
        order = list(range(len(documents)))
        end = len(order)
        while len(order) > 1:
            start = max(end - self.window, 0)
            own = order[start:end]
            order[start:end] = [own[place] for place in self._asked(query, [documents[place] for place in own])]
            if not start:
                break
            end -= self.step
        return by_order(order)

    def _asked(self, query: str, documents: Sequence[Document]) -> list[int]:
        self.calls += 1
        passages = "\n\n".join(f"[{place}] {clipped(one)}" for place, one in enumerate(documents, start=1))
        asked = _ASK.format(query=query, passages=passages, count=len(documents))
        return read_order(answer_of(self.model, asked), len(documents))


def read_order(text: str, count: int) -> list[int]:
    """Return the order that an answer gives of `count` things, from 0; what it leaves out comes last, in order.

    >>> read_order("Sure: [3] > [1] > [3] > [9]", 4)
    [2, 0, 1, 3]
    """
    marked = re.findall(r"\[(\d+)\]", text) or re.findall(r"\d+", text)
    named = [int(number) - 1 for number in marked if len(number) < 9]
    return list(dict.fromkeys([place for place in named if 0 <= place < count] + list(range(count))))
