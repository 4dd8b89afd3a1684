"""Rerankers one after the other, or mixed.

Sources: Nogueira et al. 2019, Multi-Stage Document Ranking with BERT; Rashid et al. 2024, EcoRank (stages under a
budget).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from consilience.data.documents import Document
from consilience.errors import Problems, RequestError
from consilience.retrieval.fusion.protocol import normalised
from consilience.retrieval.reranking.protocol import Ranked, Reranker, by_order, by_score

__all__ = ["Cascade", "Mixture"]


class Cascade:
    """Each stage puts the front of the one before in order: cheap rerankers first, dear ones for a few.

    stages: rerankers with how many documents from the front each sees.
    """

    def __init__(self, stages: Sequence[tuple[Reranker, int]]) -> None:
        if not stages or any(depth < 1 for _, depth in stages):
            raise RequestError("cascade: give stages, each with a depth of at least 1")
        self.stages = tuple(stages)

    @property
    def calls(self) -> int:
        """How often a model was asked so far."""
        return sum(reranker.calls for reranker, _ in self.stages)

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`."""
        order = list(range(len(documents)))
        for reranker, depth in self.stages:
            front = order[:depth]
            found = reranker.rerank(query, [documents[place] for place in front])
            order[:depth] = [front[place] for place, _ in found]
        return by_order(order)


class Mixture:
    """The weighted mean of several rerankers' scores, each brought to 0 to 1; `order` weighs the order given, too."""

    def __init__(self, parts: Sequence[tuple[Reranker, float]], *, order: float = 0.0) -> None:
        problems = Problems()
        weights = [weight for _, weight in parts] + [order]
        if not parts:
            problems.add("give at least one reranker")
        if any(not math.isfinite(weight) or weight < 0 for weight in weights) or not any(weights):
            problems.add(f"weights {weights}: 0 or more, and not all 0")
        problems.raise_if_any(RequestError, "mixture of rerankers")
        self.parts, self.order = tuple(parts), order

    @property
    def calls(self) -> int:
        """How often a model was asked so far."""
        return sum(reranker.calls for reranker, _ in self.parts)

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`."""
        terms = [[self.order * score] for _, score in by_order(range(len(documents)))]
        for reranker, weight in self.parts:
            for place, score in normalised(reranker.rerank(query, documents)):
                terms[int(place)].append(weight * score)
        return by_score([math.fsum(own) / (self.order + sum(weight for _, weight in self.parts)) for own in terms])
