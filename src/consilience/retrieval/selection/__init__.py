"""A small set that represents a neighbourhood: selection methods over plain vectors and relevances.

>>> vectors = [[1.0, 0.1], [1.0, 0.11], [0.7, 0.7], [0.1, 1.0]]
>>> select(vectors, query=[1.0, 0.3], k=2, method="top_k", ids=["a", "a again", "b", "c"]).ids
('a again', 'a')
>>> select(vectors, query=[1.0, 0.3], k=2, ids=["a", "a again", "b", "c"]).ids
('a again', 'b')

A method is a file in `methods/`; nothing is imported to list the names. `graph_overlay` brings in what is near by
links rather than by similarity.
"""

from __future__ import annotations

from consilience.retrieval.selection.protocol import Candidates, Chosen, Objective, Selection
from consilience.retrieval.selection.selecting import find_selection, select, selection_names

__all__ = ["Candidates", "Chosen", "Objective", "Selection", "find_selection", "select", "selection_names"]
