"""Walks over the edges of an index: from entities to the documents that speak of them and of their neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from consilience.stores.table import Snapshot, Table
from consilience.stores.vectors import Found

__all__ = ["nearby"]

_DECAY = 0.5  # of the score, with every hop
_DEGREE = 200  # edges that are followed from the entities of a hop, the heaviest first


def nearby(
    table: Table, snapshot: Snapshot, entities: Sequence[str], k: int, hops: int, live: NDArray[np.bool_]
) -> Found:
    """Return the documents behind the edges within `hops` of entities; a score of 1 / 2 per hop times the weight.

    Names are compared as they are written. A document's score is the largest of its edges'.
    """
    reached = dict.fromkeys(entities, 1.0)
    frontier = dict(reached)
    scores: dict[int, float] = {}
    for _ in range(hops):
        onward: dict[str, float] = {}
        for edge, number in table.edges(frontier, snapshot, limit=_DEGREE):
            start = max(frontier.get(edge.head, 0.0), frontier.get(edge.tail, 0.0))
            score = start * min(edge.weight, 1.0)
            if number < len(live) and live[number]:
                scores[number] = max(scores.get(number, 0.0), score)
            for entity in (edge.head, edge.tail):
                if entity not in reached:
                    onward[entity] = max(onward.get(entity, 0.0), score * _DECAY)
        reached |= onward
        frontier = onward
        if not frontier:
            break
    ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
    return Found(np.array([n for n, _ in ranked], np.int64), np.array([s for _, s in ranked], np.float32))
