"""What rerankers take and return, and the few steps that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from consilience.data.documents import Document
from consilience.llm import LLM
from consilience.llm.errors import EmptyReplyError

__all__ = ["Ranked", "Reranker", "answer_of", "by_order", "by_score", "clipped"]

Ranked = list[tuple[int, float]]
"""Positions in the list that was given, and scores; best first, every document once."""

WORDS = 200  # of a document that a language model is shown


class Reranker(Protocol):
    """Puts documents in the order in which they answer a query.

    calls: how often a model was asked so far.
    """

    calls: int

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """Return positions and scores of all documents, best first; equally good ones keep their order."""
        ...


def by_score(scores: Sequence[float]) -> Ranked:
    """Return positions and scores, best first; ties keep the order given.

    >>> by_score([0.1, 0.7, 0.7])
    [(1, 0.7), (2, 0.7), (0, 0.1)]
    """
    return sorted(enumerate(map(float, scores)), key=lambda pair: -pair[1])


def by_order(order: Sequence[int]) -> Ranked:
    """Return an order with scores that fall from 1 in equal steps.

    >>> by_order([2, 0, 1])
    [(2, 1.0), (0, 0.6666666666666667), (1, 0.33333333333333337)]
    """
    return [(place, 1 - rank / len(order)) for rank, place in enumerate(order)]


def clipped(document: Document, words: int = WORDS) -> str:
    """Return the beginning of a document on one line."""
    return " ".join(document.full_text.split()[:words])


def answer_of(model: LLM, text: str) -> str:
    """Return the likeliest answer of a language model; "" where it says nothing."""
    try:
        return model.generate(text, temperature=0.0).text
    except EmptyReplyError:
        return ""
