"""Ways of searching compared on judged queries: every store of an index alone, and all of them together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.bench.bootstrap import Difference, paired_bootstrap
from consilience.bench.runs import Run, write_run
from consilience.data.metrics import Metric, measure
from consilience.errors import DataError, Problems, RequestError
from consilience.retrieval.answer import Hit
from consilience.retrieval.index import Index
from consilience.retrieval.searcher import Searcher
from consilience.stores.where import Where

__all__ = ["HYBRID", "SearchEvaluation", "Way", "WayRow", "evaluate_index", "evaluate_ways", "index_ways"]

HYBRID = "hybrid"
"""The default Searcher: all stores, fused."""

_DEPTH = 100  # hits that are asked for: pieces of a document count once
METRICS = ("nDCG@10", "recall@10", "recall@100", "MRR@10")

Way = Callable[[Sequence[str], int], Sequence[Sequence[Hit]]]
"""Queries and k -> hits of every query, best first."""


@dataclass(frozen=True)
class WayRow:
    """One way: means of all metrics, the main metric of every query, its difference to the reference, what it cost.

    values: one per query. run: query -> document -> score. seconds: of the processor, for all queries.
    """

    name: str
    means: Mapping[str, float]
    values: NDArray[np.float64] = field(repr=False)
    difference: Difference | None
    seconds: float
    run: Run = field(repr=False)


@dataclass(frozen=True)
class SearchEvaluation:
    """All ways on the same queries; `metrics[0]` is the main metric."""

    metrics: tuple[str, ...]
    reference: str
    queries: tuple[str, ...]
    rows: tuple[WayRow, ...]

    def row(self, name: str) -> WayRow:
        """Return a way by name."""
        return next(row for row in self.rows if row.name == name)

    def summary(self) -> dict[str, Any]:
        """Return everything but the runs as plain data; metrics from 0 to 1."""
        return {
            "queries": len(self.queries),
            "metrics": list(self.metrics),
            "reference": self.reference,
            "ways": {
                row.name: {
                    **{name: round(value, 6) for name, value in row.means.items()},
                    "difference": None if row.difference is None else [round(v, 6) for v in row.difference[:3]],
                    "CPU milliseconds per query": round(1000 * row.seconds / max(len(self.queries), 1), 3),
                }
                for row in self.rows
            },
        }

    def write_runs(self, folder: Any) -> list[str]:
        """Write a TREC run of every way into a folder, and return the files' names."""
        from pathlib import Path

        Path(folder).mkdir(parents=True, exist_ok=True)
        names = []
        for row in self.rows:
            names.append(f"{row.name.replace(' ', '-')}.run")
            write_run(row.run, Path(folder) / names[-1], name=row.name.replace(" ", "-"))
        return names


def index_ways(index: Index, *, where: Where | None = None, **options: Any) -> dict[str, Way]:
    """Return a way for every store alone, and for the Searcher with `options` over all of them.

    The graph alone is left out: it answers only queries that name an entity.
    """

    def way(**settings: Any) -> Way:
        searcher = Searcher(index, **settings)
        return lambda queries, k: searcher.search(queries, k, where=where)

    alone = {name: way(stores=[name]) for name in ("text", *index.spaces)}
    return {**alone, HYBRID: way(**options)} if len(alone) > 1 or options else alone


def evaluate_index(
    index: Index,
    queries: Mapping[str, str],
    qrels: Run,
    *,
    ways: Mapping[str, Way] | None = None,
    reference: str | None = None,
    metrics: Sequence[str] = METRICS,
    where: Where | None = None,
    seed: int = 0,
    **options: Any,
) -> SearchEvaluation:
    """Measure an index on judged queries: each store alone, and all together with `options` of the Searcher.

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> index = Index.create(tempfile.mkdtemp() + "/index")
    >>> _ = index.add([Document("a", "Sort a list."), Document("b", "Open a file.")])
    >>> found = evaluate_index(index, {"q": "opening files"}, {"q": {"b": 1}})
    >>> found.row("text").means["nDCG@10"]
    1.0

    queries: id -> text. qrels: id of the query -> id of a document -> label. A judged id is a document of the index, or
    the parent of its pieces, of which the best counts; a row of a file (`corpus.parquet#d7`) goes by its own id, too.
    Queries without a judgement above 0 are left out. Raises DataError where none is left, or no relevant document is in
    the index.
    """
    known = {name for labels in qrels.values() for name, label in labels.items() if label > 0}
    if known and not any(known & set(_names(one, None)) for one in index.stores.all_ids()):
        raise DataError(f"none of the {len(known)} relevant documents is in the index, such as {min(known)!r}")
    given = index_ways(index, where=where, **options) if ways is None else ways
    return evaluate_ways(given, queries, qrels, reference=reference, metrics=metrics, seed=seed)


def evaluate_ways(
    ways: Mapping[str, Way],
    queries: Mapping[str, str],
    qrels: Run,
    *,
    reference: str | None = None,
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
) -> SearchEvaluation:
    """Measure ways of searching on the same queries, with paired 95 % intervals to one of them (default: the first)."""
    measures = [Metric.parse(text) for text in metrics]
    names = [name for name in queries if any(label > 0 for label in qrels.get(name, {}).values())]
    compared = reference or next(iter(ways), "")
    problems = Problems()
    if not names:
        problems.add(f"none of the {len(queries)} queries has a relevant document in the judgements")
    if compared not in ways:
        problems.add(f"reference {compared!r} is none of the ways: {', '.join(ways) or 'there are none'}")
    if not measures:
        problems.add("name a metric, such as nDCG@10")
    problems.raise_if_any(RequestError, "evaluation")
    texts, depth = [queries[name] for name in names], max(_DEPTH, *(metric.cutoff for metric in measures))
    labels = [qrels[name] for name in names]
    made: dict[str, tuple[dict[str, dict[str, float]], dict[Metric, NDArray[np.float64]], float]] = {}
    for name, way in ways.items():
        started = time.process_time()
        hits = way(texts, depth)
        seconds = time.process_time() - started
        runs = [_judged(own, one) for own, one in zip(hits, labels, strict=True)]
        made[name] = dict(zip(names, runs, strict=True)), _measured(measures, runs, labels), seconds
    main, first = measures[0], made[compared][1]
    rows = [
        WayRow(
            name,
            {str(metric): float(values[metric].mean()) for metric in measures},
            values[main],
            None if name == compared else paired_bootstrap(values[main], first[main], seed=seed),
            seconds,
            run,
        )
        for name, (run, values, seconds) in made.items()
    ]
    return SearchEvaluation(tuple(map(str, measures)), compared, tuple(names), tuple(rows))


def _judged(hits: Sequence[Hit], labels: Mapping[str, float]) -> dict[str, float]:
    """Return scores by judged document, the best of its pieces; what nobody judged goes by its own id."""
    found: dict[str, float] = {}
    for hit in hits:
        names = _names(hit.id, hit.document.parent)
        found.setdefault(next((name for name in names if name in labels), names[-1]), hit.score)
    return found


def _names(name: str, parent: str | None) -> list[str]:
    """Return what judgements may call a document: its id, its parent's, both without the file they are a row of."""
    whole = [name] if parent is None else [name, parent]
    pieces = [one.rpartition("#")[0] for one in whole if one.rpartition("#")[2].isdigit()]
    return [*whole, *(rest for one in (*whole, *pieces) if (rest := one.partition("#")[2]))]


def _measured(
    metrics: Sequence[Metric], runs: Sequence[Mapping[str, float]], labels: Sequence[Mapping[str, float]]
) -> dict[Metric, NDArray[np.float64]]:
    """Return every metric of every query; ids are numbered query by query."""
    depth = max(metric.cutoff for metric in metrics)
    ranking = np.full((len(runs), depth), -1, np.int64)
    numbered = []
    for row, (run, own) in enumerate(zip(runs, labels, strict=True)):
        numbers = {name: place for place, name in enumerate(dict.fromkeys([*own, *run]))}
        found = [numbers[name] for name in run][:depth]
        ranking[row, : len(found)] = found
        numbered.append({numbers[name]: label for name, label in own.items()})
    return measure(metrics, ranking, numbered)
