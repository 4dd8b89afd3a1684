"""Which entities a query may name: its runs of words, to be looked up among the edges of an index."""

from __future__ import annotations

import re

from consilience.data.ingestion.edges.protocol import normal_entity

__all__ = ["entities_of"]

_LONGEST = 5  # words of a name
_MOST = 64  # words of a query that are looked at
_WORD = re.compile(r"[^\W_]+(?:['’.&/-][^\W_]+)*")


def entities_of(query: str) -> list[str]:
    """Return the runs of one to five words of a query, the longest first, as they are written and folded.

    >>> entities_of("Who directed Dark City?")[:2]
    ['Who directed Dark City', 'who directed dark city']
    >>> "Dark City" in entities_of("Who directed Dark City?")
    True

    Those that are no entity of an index find nothing there.
    """
    words = list(_WORD.finditer(query))[:_MOST]
    found: dict[str, None] = {}
    for length in range(min(_LONGEST, len(words)), 0, -1):
        for start in range(len(words) - length + 1):
            text = query[words[start].start() : words[start + length - 1].end()]
            found[text] = None
            found[normal_entity(text)] = None
    return list(found)
