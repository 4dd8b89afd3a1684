"""Quoted phrases as a store of a Searcher: documents that hold the words between the quotes as they stand there."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from consilience.errors import RequestError
from consilience.stores.vectors import Found

if TYPE_CHECKING:
    from consilience.retrieval.index import Index
    from consilience.stores.where import Where

__all__ = ["PHRASES", "Phrases", "quoted"]

PHRASES = "phrases"
"""The name of the phrases among the stores of a search, where a router is to know them."""

_QUOTED = re.compile(r'"([^"]{3,})"|“([^”]{3,})”|«([^»]{3,})»')


def quoted(query: str) -> list[str]:
    """Return what stands between double quotes.

    >>> quoted('who said "to be or not" and “why”')
    ['to be or not', 'why']
    """
    return ["".join(groups).strip() for groups in _QUOTED.findall(query) if "".join(groups).strip()]


class Phrases:
    """Finds documents with all quoted phrases of a query, whatever the case and the white space; else nothing.

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> from consilience.retrieval.index import Index
    >>> from consilience.retrieval.searcher import Searcher
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> _ = index.add([Document("a", "A list to sort, to sort."), Document("b", "How to sort a list.")])
    >>> searcher = Searcher(index, stores=["phrases"], more={"phrases": Phrases(index)})
    >>> [hit.id for hit in searcher.search(['"Sort a  list"'])[0]]
    ['b']

    Of the documents that the full text finds by the words of the phrases, the first `among` are read.
    """

    def __init__(self, index: Index, *, among: int = 200) -> None:
        if among < 1:
            raise RequestError(f"among {among}: at least 1")
        self.index, self.among = index, among

    def search(self, queries: Sequence[str], k: int, *, where: Where | None = None) -> list[Found]:
        """Return the documents that hold the phrases, in the order of the full text, all with the score 1."""
        phrases = [quoted(query) for query in queries]
        asked = [" ".join(own) for own in phrases]
        found = self.index.stores.search_text(asked, max(self.among, k), where=where)
        return [self._holding(one, own, k) for one, own in zip(found, phrases, strict=True)]

    def _holding(self, found: Found, phrases: Sequence[str], k: int) -> Found:
        numbers = found.numbers.tolist() if phrases else []
        held = self.index.stores.documents(numbers)
        wanted = [_plain(phrase) for phrase in phrases]
        kept = [n for n in numbers if n in held and all(phrase in _plain(held[n].full_text) for phrase in wanted)][:k]
        return Found(np.array(kept, np.int64), np.ones(len(kept), np.float32))


def _plain(text: str) -> str:
    """Return a text in one case and with single blanks, so that quotes of it are found."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
