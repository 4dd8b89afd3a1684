"""How much the words and the vectors count for one query, when nobody says so."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from consilience.stores.vectors import Found

__all__ = ["GRAPH", "TEXT", "default_weights", "drop", "separation"]

TEXT = "text"
"""The name of the full text among the stores of a search."""

GRAPH = "graph"
"""The name of the edges among the stores of a search."""

_NONE, _SLOPE, _SEPARATED, _DROPS = -2.0, 4.5, 5.0, 4.0  # chosen on training and dev queries: docs/retrieval-quality.md
_UNKNOWN = 0.5  # of the query's words, and of the separation, where a store does not say
_RANK = 100  # what the nearest document is compared with
_FEW, _USUAL = 5, 0.3  # documents that words may find before all others; a drop that is nothing special


def default_weights(
    found: Mapping[str, Found], stores: Sequence[str], cosine: Collection[str] = ()
) -> dict[str, float]:
    """Return the weights of the stores for one query; they add up to 1.

    >>> import numpy as np
    >>> def found(*scores, coverage=None):
    ...     return Found(np.arange(len(scores)), np.array(scores, np.float32), coverage=coverage)
    >>> def words_count(text, minilm):
    ...     return round(default_weights({"text": text, "minilm": minilm}, ["text", "minilm"], ["minilm"])["text"], 2)
    >>> apart, alike = found(0.8, 0.7, 0.6), found(0.42, 0.41, 0.40)
    >>> words_count(found(4.0, 3.5, 3.0, 2.2, 1.5, 0.9, coverage=0.0), apart)
    0.12
    >>> words_count(found(4.0, 3.5, 3.0, 2.2, 1.5, 0.9, coverage=1.0), apart)
    0.5
    >>> words_count(found(4.0, 3.5, 3.0, 2.2, 1.5, 0.9, coverage=1.0), alike)
    0.91
    >>> words_count(found(6.0, 1.4, 1.4, 1.3, 1.3, 1.2, coverage=1.0), apart)
    0.87

    The full text gets 1 / (1 + exp(2 - c (max(0, 4.5 - 5 s) + 4 max(0, d - 0.3)))). c is the share of the query's words
    that its best hit has (`Found.coverage`): an encoder that has never seen a name is blind for it, and words are blind
    for a paraphrase. s is how far the stores named in `cosine` tell documents apart (`separation`), in the mean: where
    all are as near as each other, an encoder does not know. Both are 0.5 where a store does not say. d is how far words
    find a few documents before all others (`drop`), as they do by the number of a part or a rare name. All other stores
    that found anything share the rest equally.
    """
    others = [name for name in stores if name != TEXT and len(found[name])]
    if TEXT not in stores or not others:
        chosen = [name for name in stores if len(found[name])] or list(stores)
        return {name: (1 / len(chosen) if name in chosen else 0.0) for name in stores}
    coverage = found[TEXT].coverage
    apart = [separation(found[name]) for name in others if name in cosine]
    slope = _SLOPE - _SEPARATED * (math.fsum(apart) / len(apart) if apart else _UNKNOWN)
    slope = max(slope, 0.0) + _DROPS * max(drop(found[TEXT]) - _USUAL, 0.0)
    text = 1 / (1 + math.exp(-(_NONE + slope * (_UNKNOWN if coverage is None else coverage))))
    rest = (1 - text) / len(others)
    return {name: text if name == TEXT else rest if name in others else 0.0 for name in stores}


def drop(found: Found) -> float:
    """Return the largest fall of the score behind one of the best five, as a share of the best score, 0 to 1.

    >>> import numpy as np
    >>> drop(Found(np.arange(4), np.array([8.0, 6.0, 2.0, 1.0], np.float32)))
    0.5

    Behind the last there is nothing: one document alone is a fall of 1.
    """
    scores = [float(score) for score in found.scores[: _FEW + 1]]
    if not scores or scores[0] <= 0:
        return 0.0
    behind = [*scores[1:], 0.0]
    return round(max(one - two for one, two in zip(scores[:_FEW], behind, strict=False)) / scores[0], 6)


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
