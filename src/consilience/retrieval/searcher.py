"""The Searcher: a query to several stores, one ranking out of theirs, and why each hit is there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from consilience.errors import ConsilienceError, Problems, RequestError, WorkError, did_you_mean
from consilience.retrieval.answer import Answer, Hit
from consilience.retrieval.expansion.protocol import Expansion, Variation, combined
from consilience.retrieval.fusion import Origin, Ranking, find_fusion, fuse
from consilience.retrieval.fusion.arrays import weighted_pair
from consilience.retrieval.linking import entities_of
from consilience.retrieval.selection import selection_names
from consilience.retrieval.weighting import GRAPH, TEXT, default_weights
from consilience.stores.vectors import Found
from consilience.stores.where import Where, parse_where

if TYPE_CHECKING:
    from consilience.retrieval.index import Index
    from consilience.retrieval.reranking import Reranker
    from consilience.retrieval.routing import Route

__all__ = ["Answer", "Hit", "Searcher", "Store"]


class Store(Protocol):
    """A store of one's own beside those of an index."""

    def search(self, queries: Sequence[str], k: int, *, where: Where | None = None) -> list[Found]:
        """Return numbers of documents and scores for every query, best first."""
        ...


_NOTHING = np.empty(0, np.int64), np.empty(0, np.float32)
_ROUTED = 0.5  # what the last hit of a list gets, where a router chose: a short list is right to its end
_LARGE = 50_000  # documents from which on asking the stores at the same time is worth the threads


class Searcher:
    """Searches an index by words, by every space and by its edges, and fuses.

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> from consilience.retrieval.index import Index
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> _ = index.add([Document("a", "Sort a list."), Document("b", "Sort out a dog's fur.")])
    >>> [hit.id for hit in Searcher(index).search(["sorting lists"])[0]]
    ['a', 'b']

    stores: "text", names of spaces, and "graph" (documents behind the edges of entities that the query names); by
    default all, the graph where the index has edges. fusion: a method of `consilience.retrieval.fusion`, with its
    `options`. weights: by store; without any, weighted fusion takes those of `default_weights` for every query. depth:
    how many hits of each store are fused (at least k). rerank: what puts the best `rerank_depth` in a new order (see
    `consilience.retrieval.reranking`). expand: what makes more queries of one (see `consilience.retrieval.expansion`).
    select: a method of `consilience.retrieval.selection` that chooses the k hits among the best `select_depth`, so that
    they do not repeat each other, by their vectors in the first dense space. seconds: how long stores may take; those
    that take longer are left out. more: stores of your own by name, such as `Rows`. route: what says which stores a
    query is for (see `consilience.retrieval.routing`); its weights come before the default ones. Raises RequestError
    for stores the index does not have, RecipeError for wrong options of the fusion.
    """

    def __init__(
        self,
        index: Index,
        *,
        stores: Sequence[str] | None = None,
        fusion: str = "weighted",
        weights: Mapping[str, float] | None = None,
        depth: int = 100,
        rerank: Reranker | None = None,
        rerank_depth: int = 20,
        expand: Expansion | None = None,
        select: str | None = None,
        select_options: Mapping[str, Any] | None = None,
        select_depth: int = 50,
        seconds: float | None = None,
        more: Mapping[str, Store] | None = None,
        route: Callable[[str], Route] | None = None,
        **options: Any,
    ) -> None:
        self.more, self.route = dict(more or {}), route
        there = (TEXT, *index.spaces, GRAPH, *self.more)
        if stores is None:
            stores = [name for name in there if name != GRAPH or index.stores.has_edges()]
        self.index, self.stores = index, tuple(stores)
        self.fusion, self.weights, self.depth, self.options = fusion, weights, depth, options
        self.rerank, self.rerank_depth, self.expand, self.seconds = rerank, rerank_depth, expand, seconds
        problems = Problems()
        problems.extend(
            f"store {name!r} is not in this index{did_you_mean(name, there)}"
            for name in self.stores
            if name not in there
        )
        problems.extend(
            f"weight of {name!r}: no such store is searched" for name in weights or {} if name not in self.stores
        )
        problems.extend(
            f"a store of your own is called {name!r}, as one of the index is"
            for name in self.more
            if name in (TEXT, *index.spaces, GRAPH)
        )
        if route is not None and (fusion != "weighted" or weights is not None):
            problems.add("route: it chooses the weights of the fusion; leave `fusion` and `weights` out")
        if not self.stores or len(set(self.stores)) < len(self.stores):
            problems.add(f"stores {', '.join(self.stores) or 'none'}: name one or more, each once")
        problems.extend(
            f"{what} {value}: at least 1"
            for what, value in (("depth", depth), ("rerank_depth", rerank_depth), ("select_depth", select_depth))
            if value < 1
        )
        self.select, self.select_options, self.select_depth = select, dict(select_options or {}), select_depth
        dense = [name for name, one in index.stores.spaces.items() if one.kind == "dense"]
        self._selects_by = dense[0] if dense else ""
        self._cosine = {
            name
            for name in self.stores
            for one, space in index.stores.spaces.items()  # a bundle's spaces are "NAME-EXPERT"
            if space.kind == "dense" and space.similarity == "cosine" and (one == name or one.startswith(f"{name}-"))
        }
        if select is not None:
            if select not in selection_names():
                problems.add(f"select {select!r} is unknown{did_you_mean(select, selection_names())}")
            if not dense:
                problems.add("select: the index has no space with one vector for each document")
        if seconds is not None and not seconds > 0:
            problems.add(f"seconds {seconds}: more than 0")
        problems.raise_if_any(RequestError, "searcher")
        fuse({name: [] for name in self.stores}, fusion, weights=weights, **options)  # what is wrong is said here
        self._method = find_fusion(fusion)
        self._adapts = fusion == "weighted" and weights is None
        self._counted = -math.inf, 0  # when, and how many documents there were
        self._pool = ThreadPoolExecutor(len(self.stores), "search") if len(self.stores) > 1 or seconds else None

    def search(
        self, queries: Sequence[str], k: int = 10, *, where: Where | Sequence[Where | None] | None = None
    ) -> list[list[Hit]]:
        """Return the hits of every query, best first.

        where: a filter, applied before the top k (see `consilience.stores.where`), or a list of one (or None) for every
        query: those with the same filter are searched together, and the filter is looked at once. A query without any
        word is answered by the other stores. Raises RequestError for a wrong filter or k, and what a store raises;
        stores that are late (see `seconds`) are left out.
        """
        return [answer.hits for answer in self._grouped(queries, k, where, tolerant=False)]

    def answer(
        self, queries: Sequence[str], k: int = 10, *, where: Where | Sequence[Where | None] | None = None
    ) -> list[Answer]:
        """Return the hits of every query with weights, times, and stores that failed.

        A store that fails is named in `failed`, and the others answer; where the reranker fails, the fused order does.
        Raises RequestError for a wrong filter or k, WorkError where every store failed.
        """
        return self._grouped(queries, k, where, tolerant=True)

    def _grouped(
        self, queries: Sequence[str], k: int, where: Where | Sequence[Where | None] | None, *, tolerant: bool
    ) -> list[Answer]:
        """Search queries with the same filter together."""
        if isinstance(queries, str):
            raise RequestError("queries is one string; give a list of strings")
        if not isinstance(where, list | tuple):
            return self._answers(queries, k, cast("Where | None", where), tolerant=tolerant)
        if len(where) != len(queries):
            raise RequestError(f"{len(where)} filters for {len(queries)} queries; give one, or one (or None) for each")
        groups: dict[str, list[int]] = {}
        for place, own in enumerate(where):
            groups.setdefault("" if own is None else repr(parse_where(own)), []).append(place)
        found: dict[int, Answer] = {}
        for places in groups.values():
            answers = self._answers([queries[place] for place in places], k, where[places[0]], tolerant=tolerant)
            found.update(zip(places, answers, strict=True))
        return [found[place] for place in range(len(queries))]

    def _answers(self, queries: Sequence[str], k: int, where: Where | None, *, tolerant: bool) -> list[Answer]:
        seconds: dict[str, float] = {}
        failed: dict[str, str] = {}
        variations = self._varied(queries, seconds, failed if tolerant else None)
        asked = list(dict.fromkeys(one.text for own in variations for one in own))
        rankings = self.rankings(asked, k, where=where, seconds=seconds, failed=failed if tolerant else None)
        found = {name: _of_queries(name, lists, asked, variations) for name, lists in rankings.items()}
        stores = [name for name in self.stores if name in found]
        routes = self._routes(queries, seconds)
        started = time.perf_counter()
        lists = [{name: found[name][place] for name in stores} for place in range(len(queries))]
        weights = [self._weights(own, route) for own, route in zip(lists, routes, strict=True)]
        wanted = max(k, self.rerank_depth if self.rerank else 0, self.select_depth if self.select else 0)
        floors = [0.0 if route is None or not route.weights else _ROUTED for route in routes]
        fused = [self._fused(*one, wanted) for one in zip(lists, weights, floors, strict=True)]
        documents = self.index.stores.documents({number for one in fused for number, _ in one})
        origins = [_origins(own, one) for own, one in zip(lists, fused, strict=True)]
        hits = [
            [Hit(documents[n], score, own[n]) for n, score in one if n in documents]
            for own, one in zip(origins, fused, strict=True)
        ]
        seconds["fusion"] = time.perf_counter() - started
        if self.rerank is not None:
            started = time.perf_counter()
            try:
                hits = [self._reranked(query, one) for query, one in zip(queries, hits, strict=True)]
            except ConsilienceError as error:  # the fused order is an answer, too
                if not tolerant:
                    raise
                failed["rerank"] = str(error)
            seconds["rerank"] = time.perf_counter() - started
        if self.select is not None:
            started = time.perf_counter()
            hits = [self._selected(one, k) for one in hits]
            seconds["select"] = time.perf_counter() - started
        hits = [one[:k] for one in hits]
        return [
            Answer(query, own, own_weights, seconds, failed, tuple(v.text for v in made) if self.expand else (), route)
            for query, own, own_weights, made, route in zip(queries, hits, weights, variations, routes, strict=True)
        ]

    def _routes(self, queries: Sequence[str], seconds: dict[str, float]) -> list[Route | None]:
        if self.route is None:
            return [None] * len(queries)
        started = time.perf_counter()
        routes: list[Route | None] = [self.route(query) for query in queries]
        seconds["route"] = time.perf_counter() - started
        return routes

    def _varied(
        self, queries: Sequence[str], seconds: dict[str, float], failed: dict[str, str] | None
    ) -> list[Sequence[Variation]]:
        """Return what is searched for each query; the query itself where expanding fails."""
        if self.expand is None:
            return [[Variation(query)] for query in queries]
        started = time.perf_counter()
        found: list[Sequence[Variation]] = []
        for query in queries:
            try:
                found.append(list(self.expand(query)) or [Variation(query)])
            except ConsilienceError as error:
                if failed is None:
                    raise
                failed["expand"] = str(error)
                found.append([Variation(query)])
        seconds["expand"] = time.perf_counter() - started
        return found

    def rankings(
        self,
        queries: Sequence[str],
        k: int,
        *,
        where: Where | None = None,
        seconds: dict[str, float] | None = None,
        failed: dict[str, str] | None = None,
    ) -> dict[str, list[Found]]:
        """Return what every store found for every query.

        `seconds` gets the time each took. With `failed`, a store that raises is left out and named there; so are, in
        any case, stores that take longer than the Searcher allows.
        """
        if k < 1:
            raise RequestError(f"k is {k}; ask for at least 1")
        depth = max(self.depth, k)

        def one(name: str) -> list[Found]:
            started = time.perf_counter()
            found = self._from_store(name, queries, depth, where)
            if seconds is not None:
                seconds[name] = time.perf_counter() - started
            return found

        if self._pool is None or (self.seconds is None and not self._large()):
            asked: dict[str, Callable[[], list[Found]]] = {name: partial(one, name) for name in self.stores}
        else:
            running: dict[str, Future[list[Found]]] = {name: self._pool.submit(one, name) for name in self.stores}
            wait(running.values(), timeout=self.seconds)
            asked = {name: future.result for name, future in running.items() if future.done()}
            late = {name: f"no answer within {self.seconds:g} s" for name in running if name not in asked}
            if failed is not None:
                failed |= late
            if not asked:
                raise WorkError(f"no store answered within {self.seconds:g} s; allow more")
        found: dict[str, list[Found]] = {}
        for name, result in asked.items():
            try:
                found[name] = result()
            except RequestError:  # of the request, not of the store
                raise
            except ConsilienceError as error:
                if failed is None:
                    raise
                failed[name] = str(error)
        if not found:
            raise WorkError("; ".join(f"{name}: {why}" for name, why in (failed or {}).items()))
        return found

    def _large(self) -> bool:
        """Return whether stores are worth a thread each; how many documents there are is looked up once a second."""
        now = time.monotonic()
        if now > self._counted[0] + 1:
            self._counted = now, len(self.index.stores)
        return self._counted[1] >= _LARGE

    def _from_store(self, name: str, queries: Sequence[str], depth: int, where: Where | None) -> list[Found]:
        if name == TEXT:
            return self.index.stores.search_text(queries, depth, where=where)
        if name in self.more:
            return self.more[name].search(queries, depth, where=where)
        if name == GRAPH:
            return self.index.stores.search_edges([entities_of(query) for query in queries], depth, hops=2, where=where)
        out: dict[int, Found] = {}
        for part in self.index.space(name).queries(queries):
            found = self.index.stores.search_vectors(part.space, part.vectors, depth, where=where)
            out.update(zip(part.rows.tolist(), found, strict=True))
        return [out[place] for place in range(len(queries))]

    def _weights(self, found: Mapping[str, Found], route: Route | None = None) -> dict[str, float]:
        if route is not None and any(len(found[name]) and route.weights.get(name) for name in found):
            chosen = {name: route.weights.get(name, 0.0) if len(found[name]) else 0.0 for name in found}
            return {name: weight / sum(chosen.values()) for name, weight in chosen.items()}
        if self._adapts:
            return default_weights(found, list(found), self._cosine)
        return {name: 1.0 if self.weights is None else self.weights[name] for name in found}

    def _fused(
        self, lists: Mapping[str, Found], weights: Mapping[str, float], floor: float, k: int
    ) -> list[tuple[int, float]]:
        if len(lists) == 1:
            return _pairs(next(iter(lists.values())), k)
        if self._adapts:  # lists of stores are in order and finite: nothing to check
            names = [name for name in lists if weights[name] > 0]
            own, shares = [lists[name] for name in names], [weights[name] for name in names]
            if len(names) == 2:
                return weighted_pair(own, shares, floor, k)
            found = self._method([_pairs(one) for one in own], weights=shares, **({"floor": floor} if floor else {}))
        else:
            pairs: dict[str, Ranking] = {name: _pairs(one) for name, one in lists.items()}
            found = fuse(pairs, self.fusion, weights=None if self.weights is None else weights, **self.options)
        return [(int(key), score) for key, score in found[:k]]

    def _selected(self, hits: list[Hit], k: int) -> list[Hit]:
        """Return k of the best hits that are relevant and differ; relevance is their score, from 0 to 1."""
        from consilience.retrieval.selection import select

        if len(hits) <= 1:
            return hits
        numbers = self.index.stores.numbers([hit.id for hit in hits])
        vectors = self.index.stores.vectors(self._selects_by, [numbers.get(hit.id, -1) for hit in hits])
        low, high = min(hit.score for hit in hits), max(hit.score for hit in hits)
        if self.rerank is None:
            scores = [(hit.score - low) / (high - low) if high > low else 1.0 for hit in hits]
        else:  # scores of the reranker and those below are not of one scale
            scores = [1 - place / len(hits) for place in range(len(hits))]
        assert self.select is not None
        chosen = select(vectors, relevance=scores, k=k, method=self.select, **self.select_options)
        return [hits[place] for place in chosen.indices]

    def _reranked(self, query: str, hits: list[Hit]) -> list[Hit]:
        assert self.rerank is not None
        head, rest = hits[: self.rerank_depth], hits[self.rerank_depth :]
        if not head:
            return hits
        order = self.rerank.rerank(query, [hit.document for hit in head])
        new = [
            Hit(head[place].document, float(score), head[place].found, Origin(place + 1, head[place].score))
            for place, score in order
        ]
        return new + rest


def _of_queries(
    name: str, lists: Sequence[Found], asked: Sequence[str], variations: Sequence[Sequence[Variation]]
) -> list[Found]:
    """Return what a store found for each query, of what it found for all that was asked."""
    places = {text: place for place, text in enumerate(asked)}
    found = []
    for own in variations:
        mine = [one for one in own if one.stores is None or name in one.stores]
        found.append(combined([(lists[places[one.text]], one.weight) for one in mine]) if mine else Found(*_NOTHING))
    return found


def _origins(lists: Mapping[str, Found], wanted: Sequence[tuple[int, float]]) -> dict[int, dict[str, Origin]]:
    """Return where every list had the documents that are wanted."""
    found: dict[int, dict[str, Origin]] = {number: {} for number, _ in wanted}
    for name, own in lists.items():
        places = dict(zip(own.numbers.tolist(), range(len(own)), strict=True))
        for number, mine in found.items():
            if (place := places.get(number)) is not None:
                mine[name] = Origin(place + 1, float(own.scores[place]))
    return found


def _pairs(found: Found, k: int | None = None) -> list[tuple[int, float]]:
    return list(zip(found.numbers[:k].tolist(), found.scores[:k].tolist(), strict=True))
