"""How much the words and the vectors count for one query, when nobody says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from consilience.stores.vectors import Found

__all__ = ["GRAPH", "TEXT", "default_weights"]

TEXT = "text"
"""The name of the full text among the stores of a search."""

GRAPH = "graph"
"""The name of the edges among the stores of a search."""

_NONE, _SLOPE = -1.25, 2.0  # chosen on training and dev queries, see docs/search.md
_UNKNOWN = 0.5  # of the query's words, where a store does not say


def default_weights(found: Mapping[str, Found], stores: Sequence[str]) -> dict[str, float]:
    """Return the weights of the stores for one query; they add up to 1.

    >>> import numpy as np
    >>> one = np.zeros(1, int), np.ones(1, np.float32)
    >>> sure = default_weights({"text": Found(*one, coverage=1.0), "minilm": Found(*one)}, ["text", "minilm"])
    >>> round(sure["text"], 2)
    0.68
    >>> blind = default_weights({"text": Found(*one, coverage=0.0), "minilm": Found(*one)}, ["text", "minilm"])
    >>> round(blind["text"], 2)
    0.22

    The full text gets 1 / (1 + exp(1.25 - 2 c)) where c is the share of the query's words that its best hit has
    (`Found.coverage`): an encoder that has never seen a name is blind for it, and words are blind for a paraphrase. All
    other stores that found anything share the rest equally.
    """
    others = [name for name in stores if name != TEXT and len(found[name])]
    if TEXT not in stores or not others:
        chosen = [name for name in stores if len(found[name])] or list(stores)
        return {name: (1 / len(chosen) if name in chosen else 0.0) for name in stores}
    coverage = found[TEXT].coverage
    text = 1 / (1 + math.exp(-(_NONE + _SLOPE * (_UNKNOWN if coverage is None else coverage))))
    rest = (1 - text) / len(others)
    return {name: text if name == TEXT else rest if name in others else 0.0 for name in stores}
