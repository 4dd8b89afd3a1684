"""The Searcher: a query to several stores, one ranking out of theirs, and why each hit is there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consilience.data.documents import Document
from consilience.errors import Problems, RequestError, did_you_mean
from consilience.retrieval.fusion import Origin, Ranking, fuse
from consilience.stores.vectors import Found

if TYPE_CHECKING:
    from consilience.retrieval.index import Index
    from consilience.stores.where import Where

__all__ = ["Hit", "Searcher"]

TEXT = "text"
_LARGE = 50_000  # documents from which on asking the stores at the same time is worth the threads


@dataclass(frozen=True)
class Hit:
    """A document that was found: the fused score, and by which stores.

    Scores are comparable within one answer only.
    """

    document: Document
    score: float
    found: Mapping[str, Origin] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as plain data."""
        found = {name: {"rank": one.rank, "score": one.score} for name, one in self.found.items()}
        return {"id": self.id, "score": self.score, "found": found, "document": self.document.to_dict()}


class Searcher:
    """Searches an index by words and by every space, and fuses.

    >>> import tempfile
    >>> from consilience.retrieval.index import Index
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> _ = index.add([Document("a", "Sort a list."), Document("b", "Sort out a dog's fur.")])
    >>> [hit.id for hit in Searcher(index).search(["sorting lists"])[0]]
    ['a', 'b']

    stores: "text" and names of spaces; all by default. fusion: a method of `consilience.retrieval.fusion`, with its
    `options`. weights: by store; equal ones by default. depth: how many hits of each store are fused (at least k).
    Raises RequestError for stores the index does not have.
    """

    def __init__(
        self,
        index: Index,
        *,
        stores: Sequence[str] | None = None,
        fusion: str = "weighted",
        weights: Mapping[str, float] | None = None,
        depth: int = 100,
        **options: Any,
    ) -> None:
        there = (TEXT, *index.spaces)
        self.index, self.stores = index, tuple(there if stores is None else stores)
        self.fusion, self.weights, self.depth, self.options = fusion, weights, depth, options
        problems = Problems()
        problems.extend(
            f"store {name!r} is not in this index{did_you_mean(name, there)}"
            for name in self.stores
            if name not in there
        )
        problems.extend(
            f"weight of {name!r}: no such store is searched" for name in weights or {} if name not in self.stores
        )
        if not self.stores or len(set(self.stores)) < len(self.stores):
            problems.add(f"stores {', '.join(self.stores) or 'none'}: name one or more, each once")
        if depth < 1:
            problems.add(f"depth {depth}: at least 1")
        problems.raise_if_any(RequestError, "searcher")
        self._pool = ThreadPoolExecutor(len(self.stores) - 1, "search") if len(self.stores) > 1 else None

    def search(self, queries: Sequence[str], k: int = 10, *, where: Where | None = None) -> list[list[Hit]]:
        """Return the hits of every query, best first.

        where: a filter, applied before the top k (see `consilience.stores.where`). A query without any word is answered
        by the other stores. Raises RequestError for a wrong filter or k.
        """
        if isinstance(queries, str):
            raise RequestError("queries is one string; give a list of strings")
        found = self.rankings(queries, k, where=where)
        lists = [{name: _pairs(found[name][place]) for name in self.stores} for place in range(len(queries))]
        fused = [self._fused(one, k) for one in lists]
        documents = self.index.stores.documents({number for one in fused for number, _ in one})
        return [
            [
                Hit(documents[number], score, self._origins(found, place, number))
                for number, score in one
                if number in documents
            ]
            for place, one in enumerate(fused)
        ]

    def _origins(self, found: Mapping[str, Sequence[Found]], place: int, number: int) -> dict[str, Origin]:
        origins = {}
        for name in self.stores:
            own = found[name][place]
            ranks = (own.numbers == number).nonzero()[0]
            if len(ranks):
                origins[name] = Origin(int(ranks[0]) + 1, float(own.scores[ranks[0]]))
        return origins

    def rankings(
        self, queries: Sequence[str], k: int, *, where: Where | None = None, seconds: dict[str, float] | None = None
    ) -> dict[str, list[Found]]:
        """Return what every store found for every query; `seconds` gets the time each took."""
        if k < 1:
            raise RequestError(f"k is {k}; ask for at least 1")
        depth = max(self.depth, k)

        def one(name: str) -> list[Found]:
            started = time.perf_counter()
            if name == TEXT:
                found = self.index.stores.search_text(queries, depth, where=where)
            else:
                found = self._by_vectors(name, queries, depth, where)
            if seconds is not None:
                seconds[name] = time.perf_counter() - started
            return found

        if self._pool is None or len(self.index.stores) < _LARGE:
            return {name: one(name) for name in self.stores}
        others = {name: self._pool.submit(one, name) for name in self.stores[1:]}
        return {self.stores[0]: one(self.stores[0]), **{name: asked.result() for name, asked in others.items()}}

    def _by_vectors(self, name: str, queries: Sequence[str], depth: int, where: Where | None) -> list[Found]:
        out: dict[int, Found] = {}
        for part in self.index.space(name).queries(queries):
            found = self.index.stores.search_vectors(part.space, part.vectors, depth, where=where)
            out.update(zip(part.rows.tolist(), found, strict=True))
        return [out[place] for place in range(len(queries))]

    def _fused(self, lists: Mapping[str, Ranking], k: int) -> list[tuple[int, float]]:
        if len(lists) == 1:
            found = next(iter(lists.values()))[:k]
        else:
            found = fuse(lists, self.fusion, weights=self.weights, k=k, **self.options)
        return [(int(key), score) for key, score in found]


def _pairs(found: Found) -> Ranking:
    return list(zip(found.numbers.tolist(), found.scores.tolist(), strict=True))
