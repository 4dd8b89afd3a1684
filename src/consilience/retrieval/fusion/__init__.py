"""One ranking from several: fusion methods over plain lists of (key, score).

>>> fused = fuse({"vector": [("a", 0.9), ("b", 0.7), ("c", 0.5)], "text": [("b", 12.0), ("d", 4.0)]})
>>> [key for key, score in fused]
['b', 'a', 'c', 'd']

A method is a file in `methods/`; nothing is imported to list the names.
"""

from __future__ import annotations

from consilience.retrieval.fusion.fusing import find_fusion, fuse, fusion_names, origins
from consilience.retrieval.fusion.protocol import Fused, Key, Origin, Ranking

__all__ = ["Fused", "Key", "Origin", "Ranking", "find_fusion", "fuse", "fusion_names", "origins"]
