"""Documents sorted by a language model that picks the best of a few at a time, in a heap.

Use: fewer calls than pairs, answers as short. Only the first `top` have to be right.

Source: Zhuang et al. 2024, A Setwise Approach for Effective and Highly Efficient Zero-shot Ranking with LLMs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.llm import LLM
from consilience.retrieval.reranking.protocol import Ranked, answer_of, by_order, clipped

__all__ = ["Setwise"]

_ASK = "Query: {query}\n\n{passages}\n\nWhich passage answers the query best? Say only its number.\nAnswer:"


class Setwise:
    """A language model asked for the best of a parent and its children in a heap.

    >>> from consilience.llm import FunctionLLM
    >>> reranker = Setwise(FunctionLLM(lambda messages: "[2]"), top=1)
    >>> [place for place, _ in reranker.rerank("puppies", [Document("a", "Tax law."), Document("b", "A small dog.")])]
    [1, 0]

    children: of a node, so that a call shows one more. top: how many at the front are sorted; the rest keep their
    order. An answer that cannot be read leaves the parent where it is.
    """

    def __init__(self, model: LLM, *, children: int = 3, top: int = 10) -> None:
        if children < 1 or top < 1:
            raise RequestError(f"setwise: children {children}, top {top}; at least 1")
        self.model, self.children, self.top, self.calls = model, children, top, 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`."""
        texts = [clipped(document) for document in documents]
        heap = list(range(len(texts)))
        if len(heap) > 1:
            for place in range((len(heap) - 2) // self.children, -1, -1):
                self._sift(query, texts, heap, place)
        front: list[int] = []
        while heap and len(front) < self.top:
            front.append(heap[0])
            last = heap.pop()
            if heap:
                heap[0] = last
                if len(front) < self.top:
                    self._sift(query, texts, heap, 0)
        return by_order([*front, *sorted(set(range(len(texts))) - set(front))])

    def _sift(self, query: str, texts: Sequence[str], heap: list[int], place: int) -> None:
        while True:
            first = place * self.children + 1
            below = range(first, min(first + self.children, len(heap)))
            if not below:
                return
            among = [place, *below]
            best = among[self._best(query, [texts[heap[one]] for one in among])]
            if best == place:
                return
            heap[place], heap[best] = heap[best], heap[place]
            place = best

    def _best(self, query: str, texts: Sequence[str]) -> int:
        self.calls += 1
        passages = "\n\n".join(f"[{place}] {text}" for place, text in enumerate(texts, start=1))
        answer = answer_of(self.model, _ASK.format(query=query, passages=passages))
        found = re.search(r"\d+", answer)
        chosen = int(found[0]) - 1 if found and len(found[0]) < 9 else 0
        return chosen if 0 <= chosen < len(texts) else 0
