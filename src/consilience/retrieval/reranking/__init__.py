"""Rerankers: the best hits of a search in a better order, by a model that reads query and document together.

A reranker is an object with `rerank(query, documents) -> [(position, score)]`; a kind is a file. `open_reranker` makes
one of a name.
"""

from __future__ import annotations

from consilience.retrieval.reranking.opening import open_reranker, reranker_kinds
from consilience.retrieval.reranking.protocol import Ranked, Reranker

__all__ = ["Ranked", "Reranker", "open_reranker", "reranker_kinds"]
