"""Queries of several parts: each part is searched for alone, and a document has to have all, any, or none of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from consilience.errors import RequestError

if TYPE_CHECKING:
    from consilience.retrieval.answer import Hit
    from consilience.retrieval.searcher import Searcher
    from consilience.stores.where import Where

__all__ = ["AspectSearcher", "Aspects", "split_aspects"]

_WITHOUT = re.compile(r"\s*[,;]?\s*\b(?:(?:AND|BUT|and|but)\s+)?(?:NOT|(?<=and )not|(?<=but )not|WITHOUT)\b\s*")
_ALSO = re.compile(r"\s*[,;]?\s*\b(?:AND|and also|as well as)\b\s*|\s*;\s*")
_OR = re.compile(r"\s*[,;]?\s*\b(?:OR|or else)\b\s*")
_FLOOR = 0.05  # of a part that a document was not found by: one part alone must not decide


@dataclass(frozen=True)
class Aspects:
    """What a document has to be about: of every group of `all_of` one at least, and of `none_of` nothing."""

    all_of: tuple[tuple[str, ...], ...]
    none_of: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Every text that is searched for, once."""
        return tuple(dict.fromkeys([part for group in self.all_of for part in group] + list(self.none_of)))


def split_aspects(query: str) -> Aspects:
    """Return the parts of a query by what stands between them.

    >>> split_aspects("ice hockey AND graphics but not motorcycles")
    Aspects(all_of=(('ice hockey',), ('graphics',)), none_of=('motorcycles',))
    >>> split_aspects("cats OR dogs; food").all_of
    (('cats', 'dogs'), ('food',))
    >>> split_aspects("rock and roll").all_of
    (('rock and roll',),)

    AND, "and also", "as well as" and semicolons join parts that are all wanted, OR and "or else" alternatives; NOT,
    "but not", "and not" and WITHOUT begin what is not wanted, up to the next joint. A lower-case "and" is a word like
    others.
    """
    wanted: list[tuple[str, ...]] = []
    unwanted: list[str] = []
    for number, piece in enumerate(_WITHOUT.split(query)):
        for place, part in enumerate(_ALSO.split(piece)):
            names = tuple(name for name in (one.strip(" ,;.?") for one in _OR.split(part)) if name)
            if not names:
                continue
            if number and place == 0:
                unwanted += names
            else:
                wanted.append(names)
    return Aspects(tuple(wanted), tuple(unwanted)) if wanted else Aspects(((query,),))


class AspectSearcher:
    """Searches for each part of a query by a Searcher, and combines what they say of every document.

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> from consilience.retrieval.index import Index
    >>> from consilience.retrieval.searcher import Searcher
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> texts = {"a": "a red cat", "b": "a red dog", "c": "a blue cat"}
    >>> _ = index.add(Document(name, text) for name, text in texts.items())
    >>> searcher = AspectSearcher(Searcher(index))
    >>> [hits[0].id for hits in searcher.search(["red NOT cat", "cat AND blue"], k=1)]
    ['b', 'c']

    The score of a part is the Searcher's, as a share of its best hit's; of alternatives the best counts. combine:
    "min" or "product" over what is wanted; each unwanted part multiplies by 1 less its score. depth: hits of a part.
    split: how a query is cut; with a language model, any function that returns `Aspects`. A query of one part is
    searched as it is. The definition is this project's own; the idea is that of CRUMB (2025) and QUEST (2023).
    """

    def __init__(
        self,
        searcher: Searcher,
        *,
        combine: str = "min",
        depth: int = 300,
        split: Callable[[str], Aspects] = split_aspects,
    ) -> None:
        if combine not in ("product", "min"):
            raise RequestError(f"combine {combine!r}: min or product")
        if depth < 1:
            raise RequestError(f"depth {depth}: at least 1")
        self.searcher, self.combine, self.depth, self.split = searcher, combine, depth, split

    def search(self, queries: Sequence[str], k: int = 10, *, where: Where | None = None) -> list[list[Hit]]:
        """Return the hits of every query, best first; `found` of a hit says which stores had it for its best part."""
        if isinstance(queries, str):
            raise RequestError("queries is one string; give a list of strings")
        if k < 1:
            raise RequestError(f"k is {k}; ask for at least 1")
        cut = [self.split(query) for query in queries]
        whole = [len(one.parts) == 1 and not one.none_of for one in cut]
        texts = [(query,) if plain else one.parts for query, one, plain in zip(queries, cut, whole, strict=True)]
        asked = list(dict.fromkeys(text for own in texts for text in own))
        found = dict(zip(asked, self.searcher.search(asked, max(k, self.depth), where=where), strict=True))
        return [
            found[query][:k] if plain else self._combined(one, found)[:k]
            for query, one, plain in zip(queries, cut, whole, strict=True)
        ]

    def _combined(self, aspects: Aspects, found: dict[str, list[Hit]]) -> list[Hit]:
        scores = {part: _scaled(found[part]) for part in aspects.parts}
        best: dict[str, Hit] = {}
        for group in aspects.all_of:
            for part in group:
                for hit in found[part]:
                    if hit.id not in best or scores[part][hit.id] > best[hit.id].score:
                        best[hit.id] = replace(hit, score=scores[part][hit.id])
        combined = []
        for name, hit in best.items():
            values = [max(scores[part].get(name, 0.0) for part in group) for group in aspects.all_of]
            if self.combine == "min":
                value = min(values)
            else:
                value = 1.0
                for one in values:
                    value *= _FLOOR + (1 - _FLOOR) * one
            for part in aspects.none_of:
                value *= 1 - scores[part].get(name, 0.0)
            combined.append(replace(hit, score=value))
        return sorted(combined, key=lambda hit: (-hit.score, hit.id))


def _scaled(hits: Sequence[Hit]) -> dict[str, float]:
    """Return scores as shares of the best one; where some are below 0, from 0 for the least."""
    if not hits:
        return {}
    low, high = min(0.0, *(hit.score for hit in hits)), max(hit.score for hit in hits)
    return {hit.id: (hit.score - low) / (high - low) if high > low else 1.0 for hit in hits}
