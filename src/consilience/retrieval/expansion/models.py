"""Queries in other words by a language model: rewritten, several, a made-up answer, parts.

What a model says that cannot be used leaves the query as it is. Sources: Ma et al. 2023, Query Rewriting for
Retrieval-Augmented LLMs; Rackauckas 2024, RAG-Fusion (several queries); Gao et al. 2022, Precise Zero-Shot Dense
Retrieval (HyDE); Press et al. 2022, Measuring and Narrowing the Compositionality Gap (parts).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from consilience.errors import RequestError
from consilience.llm import LLM
from consilience.llm.errors import EmptyReplyError
from consilience.retrieval.expansion.protocol import Variation

__all__ = ["Decompose", "Hypothetical", "MultiQuery", "Rewrite"]

_LONGEST = 2000  # characters of an answer that are searched for
_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s+")


class _Asking(ABC):
    """A language model asked about the query; calls: how often so far."""

    prompt: str

    def __init__(self, model: LLM, *, weight: float = 0.5) -> None:
        if not 0 < weight <= 1:
            raise RequestError(f"weight {weight}: of what the model says against the query; above 0, at most 1")
        self.model, self.weight, self.calls = model, weight, 0

    def __call__(self, query: str) -> list[Variation]:
        """Return the query and what the model makes of it."""
        self.calls += 1
        try:
            answer = self.model.generate(self._asked(query), temperature=0.0).text
        except EmptyReplyError:
            answer = ""
        texts = [text for text in self._read(answer[:_LONGEST]) if text != query]
        if not texts:
            return [Variation(query)]
        kept = [Variation(query, 1 - self.weight)] if self.weight < 1 else []
        return kept + [Variation(text, self.weight / len(texts)) for text in texts]

    def _asked(self, query: str) -> str:
        return self.prompt.format(query=query)

    @abstractmethod
    def _read(self, answer: str) -> list[str]: ...


class Rewrite(_Asking):
    """The query as a search engine would rather have it.

    >>> from consilience.llm import FunctionLLM
    >>> rewrite = Rewrite(FunctionLLM(lambda messages: "capital of France"), weight=1)
    >>> [variation.text for variation in rewrite("erm, what was France's capital again?")]
    ['capital of France']

    weight: of the rewritten query; with 1 the query itself is not searched for.
    """

    prompt = (
        "Write the query so that a search engine finds what is meant. Write only the query.\nQuery: {query}\nBetter:"
    )

    def _read(self, answer: str) -> list[str]:
        first = next((line for line in answer.splitlines() if line.strip()), "")
        return [text] if (text := first.strip().strip('"')) else []


class Hypothetical(_Asking):
    """A passage that answers the query, made up: its words and its vector are nearer to those of real ones."""

    prompt = "Write a short passage that answers the question.\nQuestion: {query}\nPassage:"

    def _read(self, answer: str) -> list[str]:
        text = " ".join(answer.split())
        return [text] if text else []


class _Several(_Asking):
    def __init__(self, model: LLM, *, count: int = 3, weight: float = 0.5) -> None:
        if count < 1:
            raise RequestError(f"count {count}: at least 1")
        super().__init__(model, weight=weight)
        self.count = count

    def _asked(self, query: str) -> str:
        return self.prompt.format(query=query, count=self.count)

    def _read(self, answer: str) -> list[str]:
        lines = [_MARK.sub("", line).strip().strip('"') for line in answer.splitlines()]
        return list(dict.fromkeys(line for line in lines if line))[: self.count]


class MultiQuery(_Several):
    """The query in `count` other words."""

    prompt = (
        "Write {count} other queries, one on a line, that ask for the same in other words.\nQuery: {query}\nQueries:"
    )


class Decompose(_Several):
    """At most `count` simpler questions whose answers answer the query together."""

    prompt = (
        "Write the simpler questions, at most {count} and one on a line, whose answers are needed to answer the "
        "question.\nQuestion: {query}\nQuestions:"
    )
