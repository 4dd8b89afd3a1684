"""How much the words and the vectors count for one query, when nobody says so."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from consilience.stores.vectors import Found

__all__ = ["GRAPH", "TEXT", "default_weights", "separation"]

TEXT = "text"
"""The name of the full text among the stores of a search."""

GRAPH = "graph"
"""The name of the edges among the stores of a search."""

_NONE, _SLOPE, _SEPARATED = -2.0, 4.5, 5.0  # chosen on training and dev queries, see docs/retrieval-quality.md
_UNKNOWN = 0.5  # of the query's words, and of the separation, where a store does not say
_RANK = 100  # what the nearest document is compared with


def default_weights(
    found: Mapping[str, Found], stores: Sequence[str], cosine: Collection[str] = ()
) -> dict[str, float]:
    """Return the weights of the stores for one query; they add up to 1.

    >>> import numpy as np
    >>> one = np.zeros(1, int), np.ones(1, np.float32)
    >>> sure = default_weights({"text": Found(*one, coverage=1.0), "minilm": Found(*one)}, ["text", "minilm"])
    >>> round(sure["text"], 2)
    0.5
    >>> blind = default_weights({"text": Found(*one, coverage=0.0), "minilm": Found(*one)}, ["text", "minilm"])
    >>> round(blind["text"], 2)
    0.12
    >>> alike = Found(np.arange(3), np.array([0.42, 0.41, 0.40], np.float32))
    >>> lost = default_weights({"text": Found(*one, coverage=1.0), "minilm": alike}, ["text", "minilm"], ["minilm"])
    >>> round(lost["text"], 2)
    0.91

    The full text gets 1 / (1 + exp(2 - c max(0, 4.5 - 5 s))). c is the share of the query's words that its best hit has
    (`Found.coverage`): an encoder that has never seen a name is blind for it, and words are blind for a paraphrase. s
    is how far the stores named in `cosine` tell documents apart (`separation`), in the mean: where all are as near as
    each other, an encoder does not know. Both are 0.5 where a store does not say. All other stores that found anything
    share the rest equally.
    """
    others = [name for name in stores if name != TEXT and len(found[name])]
    if TEXT not in stores or not others:
        chosen = [name for name in stores if len(found[name])] or list(stores)
        return {name: (1 / len(chosen) if name in chosen else 0.0) for name in stores}
    coverage = found[TEXT].coverage
    apart = [separation(found[name]) for name in others if name in cosine]
    slope = _SLOPE - _SEPARATED * (math.fsum(apart) / len(apart) if apart else _UNKNOWN)
    text = 1 / (1 + math.exp(-(_NONE + max(slope, 0.0) * (_UNKNOWN if coverage is None else coverage))))
    rest = (1 - text) / len(others)
    return {name: text if name == TEXT else rest if name in others else 0.0 for name in stores}


def separation(found: Found) -> float:
    """Return how far the nearest document stands out by cosine, 0 (not at all) to 1.

    >>> import numpy as np
    >>> separation(Found(np.arange(3), np.array([0.8, 0.3, 0.2], np.float32)))
    0.75

    (first - last) / (1 - last), where the last is the 100th or the last there is: the share of the way to a perfect
    match. An encoder whose cosines are all high is judged as one whose cosines are not.
    """
    first, last = float(found.scores[0]), float(found.scores[:_RANK][-1])
    room = 1 - last
    return round(min((first - last) / room, 1.0), 6) if room > 1e-6 else 0.0
