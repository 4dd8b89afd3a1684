"""Documents in the order in which a language model finds each relevant, one by one.

A model that gives log-probabilities says yes or no, and the score is the share of yes; another one gives a grade.

Use: independent calls, as many as documents. Avoid: fine differences between good documents.

Source: Liang et al. 2022, Holistic Evaluation of Language Models (yes or no); Sachan et al. 2022 for likelihoods, see
`likelihood`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from consilience.data.documents import Document
from consilience.llm import LLM
from consilience.retrieval.reranking.protocol import Ranked, answer_of, by_score, clipped

__all__ = ["Pointwise"]

_ASK = "Passage: {passage}\nQuery: {query}\nDoes the passage answer the query? Say only yes or no.\nAnswer:"
_GRADE = (
    "Passage: {passage}\nQuery: {query}\nHow well does the passage answer the query, from 0 (not at all) to 10 "
    "(completely)? Say only the number.\nAnswer:"
)
_TOP = 20  # likeliest tokens that are looked at
_BEST = 10


class Pointwise:
    """A language model asked about every document.

    >>> from consilience.llm import FunctionLLM
    >>> model = FunctionLLM(lambda messages: "9" if "dog" in messages[0].content else "1")
    >>> reranker = Pointwise(model)
    >>> [place for place, _ in reranker.rerank("puppies", [Document("a", "Tax law."), Document("b", "A small dog.")])]
    [1, 0]

    Scores are 0 to 1. An answer that cannot be read counts as 0; `unread` says how many there were.
    """

    def __init__(self, model: LLM) -> None:
        self.model, self.calls, self.unread = model, 0, 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`."""
        return by_score([self._score(query, clipped(document)) for document in documents])

    def _score(self, query: str, passage: str) -> float:
        able = self.model.capabilities
        self.calls += 1
        if able.logprobs:
            asked = _ASK.format(passage=passage, query=query)
            reply = self.model.generate(asked, max_tokens=1, temperature=0.0, logprobs=_TOP)
            if reply.logprobs and (share := _share(reply.logprobs[0].top)) is not None:
                return share
            return self._plain(reply.text)
        if able.score:
            self.calls += 1
            asked = _ASK.format(passage=passage, query=query)
            yes, no = (sum(token.logprob for token in self.model.score(asked, word)) for word in (" yes", " no"))
            return 1 / (1 + math.exp(min(no - yes, 700.0)))
        text = answer_of(self.model, _GRADE.format(passage=passage, query=query))
        found = re.search(r"\d+(?:\.\d+)?", text)
        if found is None:
            return self._plain(text)
        return min(float(found[0]), _BEST) / _BEST

    def _plain(self, text: str) -> float:
        word = text.strip().casefold()
        if word.startswith("yes"):
            return 1.0
        self.unread += not word.startswith("no")
        return 0.0


def _share(top: Mapping[str, float]) -> float | None:
    """Return the probability of yes among yes and no; None where neither is likely."""
    sums = {"yes": 0.0, "no": 0.0}
    for token, logprob in top.items():
        word = token.strip().casefold()
        if word in sums:
            sums[word] += math.exp(logprob)
    total = sum(sums.values())
    return sums["yes"] / total if total else None
