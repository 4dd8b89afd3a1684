"""The searches, each a query: words by BM25, vectors by their dot product, edges by a recursive walk."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.stores.postgres.connection import Connection
from consilience.stores.postgres.where import postgres_condition
from consilience.stores.postgres.words import tsquery
from consilience.stores.vectors import Found
from consilience.stores.where import Filter
from consilience.stores.words import MOST_WORDS, rarities

__all__ = ["by_edges", "by_text", "by_vectors", "passing"]

_DECAY, _DEGREE = 0.5, 200  # as in `consilience.stores.graph`

_FEW_WORDS = 40  # different words of a query; up to so many, each is looked up in a document
_ENOUGH = 5  # times k: documents among which the best are probably found

# BM25 with k1 1.2 and b 0.75. A word's n places in a tsvector are how often it is there. ts_rank of one word with all
# weights 1 is the sum of 1 / j**2 for j to n, divided by pi**2 / 6: 1 at n without end; what is lacking tells n.
_TIMES = "round(1 / (1.6449340668482264 * (1 - ts_rank('{{1,1,1,1}}', words, %(word_{0})s::tsquery)::float8)) - 0.5)"
_WORD = "coalesce(%(weight_{0})s::float8 * 2.2 / (1 + 1.2 * (0.25 + 0.75 * length / %(mean)s) / nullif(TIMES, 0)), 0)"
_WORD = _WORD.replace("TIMES", _TIMES)
_LARGEST = 2.2  # a word's part of a score is below this times its weight
_FEW = """
SELECT number, ({score})::real AS score FROM documents
WHERE words @@ %(any)s::tsquery AND {condition} ORDER BY score DESC, number LIMIT %(k)s"""
_MANY = """
SELECT number,
  sum(weight * 2.2 / (1 + 1.2 * (0.25 + 0.75 * length / %(mean)s) / cardinality(positions)))::real AS score
FROM documents CROSS JOIN LATERAL unnest(documents.words) AS held
JOIN unnest(%(asked)s::text[], %(weights)s::float8[]) AS asked(word, weight) ON word = lexeme
WHERE documents.words @@ %(any)s::tsquery AND {condition} GROUP BY number ORDER BY score DESC, number LIMIT %(k)s"""

_VECTORS = """
{passing} SELECT place, number, distance
FROM unnest(%(queries)s::vector[]) WITH ORDINALITY AS asked(query, place), LATERAL (
  SELECT number, {distance} AS distance FROM {table} ORDER BY {distance}, number LIMIT %(k)s) AS near
ORDER BY place, distance, number"""
_PASSING = "WITH passing AS MATERIALIZED (SELECT number FROM documents WHERE removed IS NULL AND {condition})"

# One row per hop: the entities that were reached so far, those that are new with their scores, and the documents behind
# the edges that were followed from the hop before.
_EDGES = """
WITH RECURSIVE walk(hop, reached, names, starts, numbers, scores) AS (
  SELECT 0, %(entities)s::text[] COLLATE "C", %(entities)s::text[] COLLATE "C",
    array_fill(1::float8, ARRAY[cardinality(%(entities)s::text[])]), '{{}}'::bigint[], '{{}}'::float8[]
  UNION ALL
  SELECT hop + 1, reached || step.names, step.names, step.starts, step.numbers, step.scores FROM walk, LATERAL (
    WITH near AS MATERIALIZED (
      SELECT head, tail, number, least(weight, 1) * (SELECT max(start)
        FROM unnest(walk.names, walk.starts) AS known(name, start) WHERE name IN (head, tail)) AS score
      FROM edges WHERE head = ANY(walk.names) OR tail = ANY(walk.names)
      ORDER BY weight DESC, edges.place LIMIT {degree}),
    onward AS MATERIALIZED (
      SELECT name, max(score) * {decay} AS start FROM near, LATERAL (VALUES (head), (tail)) AS ends(name)
      WHERE name <> ALL(walk.reached) GROUP BY name)
    SELECT (SELECT coalesce(array_agg(name ORDER BY name), '{{}}') FROM onward) AS names,
      (SELECT coalesce(array_agg(start ORDER BY name), '{{}}') FROM onward) AS starts,
      (SELECT coalesce(array_agg(number ORDER BY number, score), '{{}}') FROM near) AS numbers,
      (SELECT coalesce(array_agg(score ORDER BY number, score), '{{}}') FROM near) AS scores) AS step
  WHERE hop < %(hops)s AND cardinality(walk.names) > 0)
SELECT number, max(score) AS score FROM walk, unnest(numbers, scores) AS behind(number, score)
JOIN documents USING (number) WHERE {condition} GROUP BY number ORDER BY score DESC, number LIMIT %(k)s"""


def by_text(
    connection: Connection, words: Mapping[str, int], k: int, where: Filter | None, telling: Sequence[str] = ()
) -> Found:
    """Return the documents that have at least one of the words; telling: those that count for the coverage.

    Frequent words say little: first those with rare words are scored (by all words), then those that have only more
    frequent ones as far as these could still reach the k-th score (Turtle and Flood, Information Processing &
    Management 31(6), 1995: MaxScore).
    """
    asked = sorted(words, key=lambda word: (-words[word], word))[:MOST_WORDS]
    documents, total = connection.execute("SELECT documents, words FROM consilience").fetchone() or (0, 0)
    query = "SELECT word, documents FROM rarity WHERE word = ANY(%s) AND documents > 0"
    holding: dict[str, int] = dict(connection.execute(query, [asked]).fetchall())
    rarity = rarities({word: holding.get(word, 0) for word in asked}, documents)
    weights = {word: words[word] * rarity[word] for word in asked if word in holding}
    rarest = sorted(weights, key=lambda word: -weights[word])
    if not rarest:
        return replace(_found(()), coverage=0.0 if telling else None)
    condition, values = _condition(where)
    values |= {"mean": max(total / max(documents, 1), 1e-9), "k": k}
    if len(rarest) > _FEW_WORDS:
        values |= {"asked": rarest, "weights": [weights[word] for word in rarest]}
        text = _MANY.format(condition=condition).encode()
    else:
        values |= {f"word_{place}": tsquery(word) for place, word in enumerate(rarest)}
        values |= {f"weight_{place}": weights[word] for place, word in enumerate(rarest)}
        text = _FEW.format(score=" + ".join(map(_WORD.format, range(len(rarest)))), condition=condition).encode()

    def best(count: int) -> Found:
        those = " | ".join(tsquery(word) for word in rarest[:count])
        return _found(connection.execute(text, {**values, "any": those}).fetchall())

    held = list(accumulate(holding[word] for word in rarest))
    first = min(bisect_left(held, _ENOUGH * k) + 1, len(rarest))
    found = best(first)
    # what documents can score that have none of the first words, for every number of first words
    beyond = [_LARGEST * sum(weights[word] for word in rarest[count:]) for count in range(len(rarest) + 1)]
    reached = float(found.scores[-1]) if len(found) == k else 0.0
    needed = next(count for count, score in enumerate(beyond) if score < reached or count == len(rarest))
    if needed > first:
        found = best(needed)
    return replace(found, coverage=_coverage(connection, found, {word: rarity[word] for word in telling}))


def _coverage(connection: Connection, found: Found, rarity: Mapping[str, float]) -> float | None:
    """Return the share of the words that the best document has, each with its inverse document frequency."""
    total = math.fsum(rarity.values())
    if not total or not len(found):
        return 0.0 if rarity else None
    query = "SELECT lexeme FROM documents, unnest(words) WHERE number = %s AND lexeme = ANY(%s)"
    held = connection.execute(query, [int(found.numbers[0]), [*rarity]]).fetchall()
    return math.fsum(rarity[word] for (word,) in held) / total


def by_vectors(
    connection: Connection, table: str, queries: NDArray[np.float32], k: int, where: Filter | None, *, exact: bool
) -> list[Found]:
    """Return the documents with the largest dot product for every query.

    exact: all vectors are compared; else an approximate index is used where there is one. With a filter always exact.
    """
    if not len(queries):
        return []
    condition, values = _condition(where)
    text = _VECTORS.format(
        passing="" if where is None else _PASSING.format(condition=condition),
        table=table if where is None else f"passing JOIN {table} USING (number)",
        # a sum is the order of no index
        distance="(vector <#> asked.query) + 0" if exact or where is not None else "vector <#> asked.query",
    )
    rows = connection.execute(text.encode(), {"queries": [*queries], "k": k, **values}, binary=True).fetchall()
    places = np.array([row[0] for row in rows], np.int64)
    bounds = np.searchsorted(places, np.arange(1, len(queries) + 2))
    return [
        _found((number, -distance) for _, number, distance in rows[bounds[place] : bounds[place + 1]])
        for place in range(len(queries))
    ]


def by_edges(connection: Connection, entities: Iterable[str], k: int, hops: int, where: Filter | None) -> Found:
    """Return the documents behind the edges within `hops` of entities; a score of 1 / 2 per hop times the weight."""
    condition, values = _condition(where)
    text = _EDGES.format(condition=condition, degree=_DEGREE, decay=_DECAY)
    given = {"entities": [*dict.fromkeys(entities)], "hops": hops, "k": k}
    return _found(connection.execute(text.encode(), {**given, **values}).fetchall())


def passing(connection: Connection, where: Filter | None) -> NDArray[np.int64]:
    """Return the numbers of the documents that a filter is true of, rising."""
    condition, values = _condition(where)
    text = f"SELECT number FROM documents WHERE removed IS NULL AND ({condition}) ORDER BY number"
    return np.array([row[0] for row in connection.execute(text.encode(), values).fetchall()], np.int64)


def _condition(where: Filter | None) -> tuple[str, dict[str, object]]:
    return ("true", {}) if where is None else postgres_condition(where)


def _found(rows: Iterable[Sequence[Any]]) -> Found:
    pairs = [*rows]
    return Found(np.array([n for n, _ in pairs], np.int64), np.array([score for _, score in pairs], np.float32))
