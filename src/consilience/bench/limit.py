"""LIMIT: relevance patterns that single vectors fail on, and the texts that carry them, of any size.

A query has k relevant documents, and the pattern over documents is as dense as it can be: all k-subsets of the fewest
documents that have enough of them. Texts say who likes what: "Who likes quinces?" is answered by the k persons that do.

Source: Weller et al. 2025, On the Theoretical Limitations of Embedding-Based Retrieval (arXiv 2508.21038).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, islice
from typing import Literal

import numpy as np

from consilience.core.randomness import stream_key
from consilience.data.retrieval import RetrievalData
from consilience.errors import Problems, RequestError

__all__ = ["Pattern", "limit_data", "relevance_pattern"]

Pattern = Literal["dense", "cycle", "disjoint", "random"]

_MOST = 200_000  # queries
_LEAST_ATTRIBUTES, _MOST_ATTRIBUTES = 45, 50  # of a person


def relevance_pattern(
    pattern: Pattern, *, queries: int | None = None, documents: int | None = None, k: int = 2, seed: int = 0
) -> list[tuple[int, ...]]:
    """Return the relevant documents of every query, ascending.

    >>> relevance_pattern("dense", queries=4)
    [(0, 1), (0, 2), (0, 3), (1, 2)]
    >>> relevance_pattern("cycle", documents=3), relevance_pattern("disjoint", documents=5)
    ([(0, 1), (1, 2), (0, 2)], [(0, 1), (2, 3)])

    dense: the first `queries` of all k-subsets of the fewest documents with that many, or of `documents` (then all,
    without `queries`). cycle: documents i to i + k - 1, around. disjoint: blocks of k. random: `queries` different
    k-subsets of `documents`, drawn by `seed`. Raises RequestError for what cannot be, and for more than 200,000.
    """
    problems = Problems()
    if k < 1:
        problems.add(f"k is {k}; a query has at least 1 relevant document")
    if documents is not None and documents < max(k, 1):
        problems.add(f"{documents} documents, {k} relevant for a query; there are at least as many documents")
    if queries is not None and queries < 1:
        problems.add(f"{queries} queries; at least 1")
    if documents is None and (pattern in ("cycle", "disjoint", "random") or queries is None):
        problems.add(f"pattern {pattern!r} needs the number of documents")
    if pattern == "random" and queries is None:
        problems.add("pattern 'random' needs the number of queries")
    problems.raise_if_any(RequestError, "relevance")
    if documents is None:
        assert queries is not None
        documents = k
        while math.comb(documents, k) < queries:
            documents += 1
    every = math.comb(documents, k)
    found = {"dense": every, "random": every, "cycle": documents, "disjoint": documents // k}.get(pattern)
    if found is None:
        raise RequestError(f"relevance: pattern {pattern!r}; there are dense, cycle, disjoint, random")
    count = found if queries is None else queries
    if count > min(found, _MOST):
        raise RequestError(
            f"relevance: {count} queries; {pattern} of {documents} documents has {found}, at most {_MOST}"
        )
    if pattern == "dense":
        return list(islice(combinations(range(documents), k), count))
    if pattern == "cycle":
        return [tuple(sorted((start + step) % documents for step in range(k))) for start in range(count)]
    if pattern == "disjoint":
        return [tuple(range(start * k, start * k + k)) for start in range(count)]
    random = np.random.Generator(np.random.Philox(stream_key(seed, "limit", "pattern")))
    chosen: dict[tuple[int, ...], None] = {}
    while len(chosen) < count:
        chosen[tuple(sorted(random.choice(documents, k, replace=False).tolist()))] = None
    return list(chosen)


def limit_data(
    relevance: Sequence[Sequence[int]], *, documents: int = 0, attributes: Sequence[str] | None = None, seed: int = 0
) -> RetrievalData:
    """Return a dataset of persons who like things, with the given relevance: all queries are test queries.

    >>> data = limit_data([(0, 1), (0, 2)], documents=5)
    >>> len(data.documents), len(data.queries("test")), [len(found) for found in data.qrels("test").values()]
    (5, 2, [2, 2])

    relevance: documents by query; `documents` persons in all, distractors after the relevant ones. Every query has a
    thing of its own, which only its documents like; everyone likes 45 to 50 things (more where more queries want them),
    the others drawn from things that no query asks for. attributes: names of things, more of them than queries; made up
    without. Raises RequestError where there are too few.
    """
    persons = max([documents, *(one + 1 for held in relevance for one in held)])
    things = list(attributes) if attributes is not None else [f"thing {n}" for n in range(len(relevance) + 200)]
    spare = things[len(relevance) :]
    if len(set(things)) != len(things) or len(spare) < _MOST_ATTRIBUTES:
        raise RequestError(
            f"limit: {len(set(things))} different attributes for {len(relevance)} queries; {_MOST_ATTRIBUTES} more "
            "than queries are needed"
        )
    random = np.random.Generator(np.random.Philox(stream_key(seed, "limit", "texts")))
    likes: list[list[str]] = [[] for _ in range(persons)]
    for query, held in enumerate(relevance):
        for person in held:
            likes[person].append(things[query])
    texts = {}
    for person, own in enumerate(likes):
        wanted = int(random.integers(_LEAST_ATTRIBUTES, _MOST_ATTRIBUTES + 1))
        more = random.choice(len(spare), max(wanted - len(own), 0), replace=False)
        every = own + [spare[place] for place in more.tolist()]
        random.shuffle(every)
        texts[f"person {person}"] = f"Person {person} likes {', '.join(every[:-1])} and {every[-1]}."
    return RetrievalData.of(
        "limit",
        documents=texts,
        queries={f"q{number}": (f"Who likes {things[number]}?", "test") for number in range(len(relevance))},
        judgements=[(f"q{number}", f"person {one}", 1) for number, held in enumerate(relevance) for one in held],
    )
