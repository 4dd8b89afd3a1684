"""Which stores a query is for: by what stands in it, or as learned from examples; words and vectors stay the floor."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RequestError
from consilience.retrieval.linking import entities_of
from consilience.retrieval.phrases import PHRASES, quoted
from consilience.retrieval.weighting import GRAPH, TEXT

if TYPE_CHECKING:
    from consilience.bundles.routers.protocol import Router
    from consilience.retrieval.index import Index
    from consilience.retrieval.relational import Rows
    from consilience.retrieval.searcher import Searcher, Store

__all__ = ["KINDS", "ROWS", "LearnedRouter", "Route", "StoreRouter", "routed"]

ROWS = "rows"
"""The name of the rows among the stores of a search, where a router is to know them."""

KINDS = ("phrase", "rows", "relation", "mixed", "meaning")

_RELATION = re.compile(
    r"\b(?:kinds? of|types? of|sorts? of|examples? of|parts? of|related to|linked to|connected (?:to|with)|refers? to|"
    r"referred to|cites?|cited|directed by|written by|born in|works? (?:for|at)|belongs? to)\b",
    re.IGNORECASE,
)
Encode = Callable[[Sequence[str]], NDArray[np.float32]]

_FLOOR = 0.15  # of every store that is not what the query is for


@dataclass(frozen=True)
class Route:
    """What a query is: `kind`, how sure that is (0 to 1), and why; weights of stores, empty where nothing is known.

    Without weights the Searcher takes its own.
    """

    kind: str
    confidence: float
    why: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)


class StoreRouter:
    """Says by rules which stores a query is for.

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> from consilience.retrieval.index import Index
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> _ = index.add([Document("a", "Sort a list.")])
    >>> StoreRouter(index)('which text says "sort a list"').kind
    'phrase'

    Phrases between quotes are for the words (and a store `Phrases`, where there is one); values, columns, comparisons
    and counts for the rows (a `Rows`); words of relations with an entity that the edges know for the graph; the rest is
    a question of meaning, for which the Searcher weighs words and vectors itself. Words and vectors always have a
    share. threshold: less confidence than this leaves the Searcher's own weights.
    """

    def __init__(self, index: Index, *, rows: Rows | None = None, threshold: float = 0.5) -> None:
        if not 0 <= threshold <= 1:
            raise RequestError(f"threshold {threshold}: from 0 to 1")
        self.index, self.rows, self.threshold = index, rows, threshold
        self._edges = index.stores.has_edges()

    def __call__(self, query: str) -> Route:
        """Return the route of a query."""
        values = self.features(query)
        why = tuple(name for name, value in zip(FEATURES[:6], values, strict=False) if value)
        quotes, conditions, named, ordered, relation, entity = values[:6]
        rows = ordered + min(conditions, 1) + named + (conditions > 1) > 1  # one value alone may be any word
        if quotes and (rows or conditions):
            return self._route("mixed", 0.9, why)
        if quotes:
            return self._route("phrase", 0.9, why)
        if relation and entity and not (rows and ordered):
            return self._route("relation", 0.8, why)
        if rows:
            return self._route("rows", 0.9, why)
        return self._route("meaning", 0.5, why)

    def features(self, query: str) -> tuple[float, ...]:
        """Return what stands in a query, as `FEATURES` names it."""
        understood = None if self.rows is None else self.rows.understand(query)
        entity = False
        if self._edges and _RELATION.search(query):
            entity = len(self.index.stores.search_edges([entities_of(query)], 1)[0]) > 0
        words = len(query.split())
        asked = None if understood is None else understood.query
        return (
            float(bool(quoted(query))),
            0.0 if understood is None else float(min(understood.conditions, 3)),
            0.0 if understood is None else float(understood.parts[0] == understood.query.table),
            0.0 if asked is None else float(asked.what != "rows" or asked.order is not None),
            float(bool(_RELATION.search(query))),
            float(entity),
            float(query.strip().endswith("?")),
            min(words / 20, 1.0),
        )

    def _route(self, kind: str, confidence: float, why: tuple[str, ...]) -> Route:
        if kind == "meaning" or confidence < self.threshold:
            return Route(kind, confidence, why)
        return Route(kind, confidence, why, weights_of(kind, self.index.spaces))


FEATURES = (
    "quotes",
    "conditions",
    "table named",
    "number or order",
    "relation word",
    "entity",
    "question mark",
    "length",
)


def weights_of(kind: str, spaces: Sequence[str]) -> dict[str, float]:
    """Return the weights of stores for a kind of query; the vectors share theirs.

    >>> weights_of("rows", ["minilm"])
    {'text': 0.15, 'minilm': 0.15, 'graph': 0.15, 'rows': 1.0, 'phrases': 0.15}
    """
    high = {"phrase": (TEXT, PHRASES), "rows": (ROWS,), "relation": (GRAPH,), "mixed": (TEXT, PHRASES, ROWS)}[kind]
    found = {TEXT: 1.0 if TEXT in high else _FLOOR}
    found |= dict.fromkeys(spaces, _FLOOR / max(len(spaces), 1))
    return found | {name: 1.0 if name in high else _FLOOR for name in (GRAPH, ROWS, PHRASES)}


class LearnedRouter:
    """A router that learned from queries of known kinds: by their vectors and what stands in them.

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> from consilience.retrieval.index import Index
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> _ = index.add([Document("a", "Sort a list.")])
    >>> def encode(texts):
    ...     return np.array([[len(text), text.count("?")] for text in texts], np.float32)
    >>> queries = ['what says "sort it"', 'who says "a list"', "why sort lists", "how to order things"]
    >>> router = LearnedRouter.fit(StoreRouter(index), encode, queries, ["phrase", "phrase", "meaning", "meaning"])
    >>> router('where is "in place" said').kind
    'phrase'

    rules: for the features, and for weights and threshold. encode: texts to vectors, such as an encoder's `encode`.
    """

    def __init__(
        self, rules: StoreRouter, encode: Callable[[Sequence[str]], NDArray[np.float32]], fitted: Router
    ) -> None:
        self.rules, self.encode, self.fitted = rules, encode, fitted

    @classmethod
    def fit(
        cls,
        rules: StoreRouter,
        encode: Encode,
        queries: Sequence[str],
        kinds: Sequence[str],
    ) -> LearnedRouter:
        """Fit a logistic regression to queries and their kinds (see `KINDS`)."""
        from consilience.bundles.routers.classifier import fit_logistic

        if unknown := sorted(set(kinds) - set(KINDS)):
            raise RequestError(f"kinds {', '.join(unknown)} are unknown; there are {', '.join(KINDS)}")
        return cls(rules, encode, fit_logistic(_vectors(rules, encode, queries), list(kinds)))

    def __call__(self, query: str) -> Route:
        """Return the route of a query."""
        vectors = _vectors(self.rules, self.encode, [query])
        kind, confidence = self.fitted.route(vectors).chosen[0], float(self.fitted.confidence(vectors)[0])
        return self.rules._route(kind, confidence, (f"learned: {kind} {confidence:.2f}",))


def _vectors(rules: StoreRouter, encode: Encode, queries: Sequence[str]) -> NDArray[np.float32]:
    own = np.array([rules.features(query) for query in queries], np.float32)
    return np.concatenate([np.asarray(encode(list(queries)), np.float32), 2 * own], axis=1)


def routed(index: Index, *, rows: Rows | None = None, **options: Any) -> Searcher:
    """Return a Searcher over everything an index has, rows and quoted phrases among it, with the router of rules.

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> from consilience.retrieval.index import Index
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> _ = index.add([Document("a", "How to sort a list."), Document("b", "Sort it out; a list of dogs.")])
    >>> answer = routed(index).answer(['where is "sort a list"'])[0]
    >>> answer.route.kind, answer.hits[0].id
    ('phrase', 'a')

    rows: of the same index, where there is one that has read its schema. options: those of the Searcher, but fusion,
    weights, more and route.
    """
    from consilience.retrieval.phrases import Phrases
    from consilience.retrieval.relational import Rows
    from consilience.retrieval.searcher import Searcher

    rows = rows or Rows(index)
    more: dict[str, Store] = {ROWS: rows, PHRASES: Phrases(index)}
    return Searcher(index, more=more, route=StoreRouter(index, rows=rows), **options)
