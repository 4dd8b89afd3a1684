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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilience.retrieval.batches import BatchIndex, HybridQuery

ROOT = Path(__file__).parents[1]
PROBES = 8


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

    from consilience.bench.filtered_search import (
        FILTERS,
        OTHERS,
        Baselines,
        answers,
        attributes,
        clustered,
        hybrid_queries,
        recall,
        text_vectors,
        timed,
    )
    from consilience.retrieval.batches import BatchIndex, search_batch, search_one

    random = np.random.default_rng(0)
    if options.texts:
        vectors, _ = text_vectors(options.rows, random)  # encoding them is most of the time
    else:
        vectors = clustered(options.rows, random)
    fields = attributes(len(vectors), random)
    past, now = (hybrid_queries(vectors, FILTERS, options.queries, random) for _ in range(2))
    shifted = hybrid_queries(vectors, OTHERS, options.queries, random)
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
    peers = Baselines(whole, vectors, fields, now, probes=PROBES)
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
