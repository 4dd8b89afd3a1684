"""Query operators: other texts to search with, each with a weight, from the query and what it finds.

An operator is called with a query and returns `Variation`s; `Searcher(index, expand=operator)` searches with all.
"""

from __future__ import annotations

from consilience.retrieval.expansion.feedback import RelevanceFeedback
from consilience.retrieval.expansion.models import Decompose, Hypothetical, MultiQuery, Rewrite
from consilience.retrieval.expansion.protocol import Expansion, Variation

__all__ = [
    "Decompose",
    "Expansion",
    "Hypothetical",
    "MultiQuery",
    "RelevanceFeedback",
    "Rewrite",
    "Variation",
]
