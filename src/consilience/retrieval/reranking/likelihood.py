"""Documents in the order in which they make the query likely, to a language model.

Use: a base model without instruction tuning; no answer has to be read. Needs a model that scores text.

Source: Sachan et al. 2022, Improving Passage Retrieval with Zero-Shot Question Generation (UPR).
"""

from __future__ import annotations

from collections.abc import Sequence

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.llm import LLM
from consilience.retrieval.reranking.protocol import Ranked, by_score, clipped

__all__ = ["Likelihood"]

_PROMPT = "Passage: {passage}\nA question that this passage answers:"


class Likelihood:
    """The mean log-probability of the query's tokens behind each document.

    Raises RequestError for a model that cannot score text.
    """

    def __init__(self, model: LLM) -> None:
        if not model.capabilities.score:
            raise RequestError(f"{model.name} cannot score text; use a local model, or another reranker")
        self.model, self.calls = model, 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`; scores are natural logarithms."""
        scores = []
        for document in documents:
            tokens = self.model.score(_PROMPT.format(passage=clipped(document)), f" {query}")
            scores.append(sum(token.logprob for token in tokens) / max(len(tokens), 1))
            self.calls += 1
        return by_score(scores)
