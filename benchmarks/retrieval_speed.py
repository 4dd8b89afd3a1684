"""Speed and size of an index against faiss and bm25s glued by hand, and against LanceDB, in one run, interleaved.

`python benchmarks/retrieval_speed.py` makes documents of words that follow Zipf's law with unit vectors around topics,
indexes them, and measures: exact vector search against faiss's flat index, the hybrid search of a query (words and
vectors, fused) against bm25s + faiss + min-max by hand and a table of LanceDB, with a filter that a tenth of the
documents pass, approximate indexes with their recall, and what indexing costs. From 500,000 documents on they have no
texts. Query vectors are given: encoding is the same on all sides. Medians of interleaved runs; the figures go to
retrieval_speed.json. `--smoke` takes a few hundred documents.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _search_peers import ByHand, Lance, agreement

ROOT = Path(__file__).parents[1]
DIMENSION, WORDS, LENGTH, TOPICS = 384, 30_000, 40, 200
WITHOUT_TEXTS = 500_000


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.documents, options.queries = [300], 8
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    rows = [
        measure(count, options.queries, options.threads, options.folder / "retrieval") for count in options.documents
    ]
    options.folder.mkdir(parents=True, exist_ok=True)
    report = {"threads": options.threads, "queries": options.queries, "rows": rows}
    (options.folder / "retrieval_speed.json").write_text(json.dumps(report, indent=1))


def made(count: int, queries: int) -> tuple[list[str], Any, list[str], Any]:
    """Return texts (none for many documents) and vectors of documents and of queries."""
    drawing = np.random.default_rng(count)
    centres = drawing.normal(size=(TOPICS, DIMENSION)).astype(np.float32)
    vectors = 0.7 * drawing.standard_normal((count, DIMENSION), np.float32)
    vectors += centres[drawing.integers(0, TOPICS, count)]
    asked = drawing.integers(0, count, queries)
    near = vectors[asked] + 0.5 * drawing.standard_normal((queries, DIMENSION), np.float32)
    if count >= WITHOUT_TEXTS:
        return [], unit(vectors), [f"query {number}" for number in range(queries)], unit(near)
    weights = 1 / np.arange(1, WORDS + 1)
    drawn = drawing.choice(WORDS, (count, LENGTH), p=weights / weights.sum())
    texts = [" ".join(f"word{number}" for number in row) for row in drawn]
    questions = [" ".join(f"word{number}" for number in drawing.permutation(drawn[row])[:6]) for row in asked]
    return texts, unit(vectors), questions, unit(near)


def unit(vectors: Any) -> Any:
    """Return vectors of length 1 in single precision."""
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


class Given:
    """A space whose query vectors are there already."""

    def __init__(self, vectors: dict[str, Any]) -> None:
        self.vectors = vectors

    def queries(self, texts: Sequence[str]) -> list[Any]:
        from consilience.retrieval.spaces import Encoded

        return [Encoded("given", np.arange(len(texts)), np.stack([self.vectors[text] for text in texts]))]


def measure(count: int, queries: int, threads: int, folder: Path) -> dict[str, Any]:
    """Index, search in every way, and return the figures."""
    import faiss

    from consilience.core.memory import peak_memory
    from consilience.data.documents import Document
    from consilience.retrieval.index import Index
    from consilience.retrieval.searcher import Searcher
    from consilience.stores.embedded import EmbeddedStores
    from consilience.stores.protocol import Batch, VectorSpace

    faiss.omp_set_num_threads(threads)
    texts, vectors, questions, near = made(count, queries)
    shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time()
    with peak_memory() as peak:
        stores = EmbeddedStores.create(folder / "index", [VectorSpace("given", DIMENSION)], language=None)
        for start in range(0, count, 8192):
            some = range(start, min(start + 8192, count))
            documents = [Document(f"d{n}", texts[n] if texts else "", fields={"part": n % 10}) for n in some]
            stores.write(Batch(documents, {"given": vectors[start : start + 8192]}), replace=False)
        stores.compact()
    row: dict[str, Any] = {
        "documents": count,
        "indexed per CPU second": count / (time.process_time() - started),
        "bytes per document": stores.stats()["bytes"] / count,
        "private MB while indexing": (peak.private or 0) / 1e6,
    }
    hand = ByHand(texts, vectors)
    lance = Lance(folder / "lance", texts, vectors, threads)
    row["bm25s indexed per CPU second"] = count / hand.seconds if texts else None
    row["lancedb indexed per CPU second"] = count / lance.seconds
    row["lancedb bytes per document"] = lance.bytes / count
    index = Index(stores, spaces={"given": Given(dict(zip(questions, near, strict=True)))}, encoders={"given": ""})
    searcher = Searcher(index)
    ways: dict[str, Callable[[int], Any]] = {
        "faiss flat": lambda n: hand.by_vectors(near[n : n + 1]),
        "exact vectors": lambda n: stores.search_vectors("given", near[n : n + 1], 10),
        "lancedb vectors": lambda n: lance.by_vectors(near[n]),
    }
    if texts:
        ways |= {
            "bm25s": lambda n: hand.by_words(questions[n]),
            "words": lambda n: stores.search_text([questions[n]], 10),
            "by hand": lambda n: hand.hybrid(questions[n], near[n : n + 1]),
            "lancedb hybrid": lambda n: lance.hybrid(questions[n], near[n]),
            "hybrid": lambda n: searcher.search([questions[n]], 10),
            "lancedb, a tenth": lambda n: lance.hybrid(questions[n], near[n], "part = 3"),
            "hybrid, a tenth": lambda n: searcher.search([questions[n]], 10, where="part = 3"),
        }
    row["milliseconds"] = interleaved(ways, queries)
    row |= ratios({way: own["cpu"] for way, own in row["milliseconds"].items()})
    some = range(min(queries, 50))
    exact = [hand.by_vectors(near[n : n + 1])[0][0].tolist() for n in some]
    row["recall, exact vectors"] = agreement(exact, [found(stores, near[n : n + 1]) for n in some]) / 10
    row["recall, lancedb vectors"] = (
        agreement(exact, [[int(i[1:]) for i in lance.by_vectors(near[n])] for n in some]) / 10
    )
    if texts:
        equal = Searcher(index, weights={"text": 1.0, "given": 1.0})  # as by hand
        ours = [[int(hit.id[1:]) for hit in equal.search([questions[n]], 10)[0]] for n in some]
        row["of 10 hits the same"] = agreement([hand.hybrid(questions[n], near[n : n + 1]) for n in some], ours)
    batch = timed(lambda: stores.search_vectors("given", near, 10)) / timed(lambda: hand.by_vectors(near))
    row["exact vectors, a batch, times faiss"] = batch
    for kind in ("ivfflat", "hnsw"):
        if kind == "hnsw" and count > 100_000:  # a graph of a million takes an hour of CPU
            continue
        started = time.process_time()
        if count >= 1_000:
            stores.approximate("given", kind)
            row[f"{kind} built per CPU second"] = count / (time.process_time() - started)
            way = {f"{kind}": lambda n: stores.search_vectors("given", near[n : n + 1], 10)}
            row["milliseconds"] |= interleaved(way, queries)
            row[f"recall, {kind}"] = agreement(exact, [found(stores, near[n : n + 1]) for n in some]) / 10
    stores.close()
    shutil.rmtree(folder, ignore_errors=True)
    show(row, threads)
    return row


def found(stores: Any, query: Any) -> list[int]:
    """Return the rows of the nearest documents."""
    numbers = stores.search_vectors("given", query, 10)[0].numbers.tolist()
    return [int(stores.documents([number])[number].id[1:]) for number in numbers]


def interleaved(ways: dict[str, Callable[[int], Any]], queries: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of every way, query after query in turn: median, 95th percentile, CPU.

    For each query in another order: whoever comes after LanceDB finds the processor's caches empty.
    """
    spent: dict[str, list[float]] = {way: [] for way in ways}
    worked: dict[str, list[float]] = {way: [] for way in ways}
    order = random.Random(0)
    for place in range(queries):
        for way, search in order.sample(list(ways.items()), len(ways)):
            if place == 0:
                search(place)  # what is made once is made here
            before, used = time.perf_counter(), time.process_time()
            search(place)
            spent[way].append(1000 * (time.perf_counter() - before))
            worked[way].append(1000 * (time.process_time() - used))
    return {
        way: {
            "p50": float(np.percentile(own, 50)),
            "p95": float(np.percentile(own, 95)),
            "cpu": float(np.median(worked[way])),
        }
        for way, own in spent.items()
    }


def ratios(cpu: dict[str, float]) -> dict[str, float]:
    """Return how many times the CPU of its peer each way takes."""
    pairs = {
        "exact vectors, CPU times faiss": ("exact vectors", "faiss flat"),
        "exact vectors, CPU times lancedb": ("exact vectors", "lancedb vectors"),
        "hybrid, CPU times by hand": ("hybrid", "by hand"),
        "hybrid, CPU times lancedb": ("hybrid", "lancedb hybrid"),
        "hybrid a tenth, CPU times lancedb": ("hybrid, a tenth", "lancedb, a tenth"),
    }
    return {name: cpu[ours] / cpu[theirs] for name, (ours, theirs) in pairs.items() if ours in cpu}


def show(row: dict[str, Any], threads: int) -> None:
    """Print the figures."""
    print(f"\n{row['documents']} documents, {threads} threads")
    for name, value in row.items():
        if name == "milliseconds":
            for way, own in value.items():
                print(f"  {way:<18} p50 {own['p50']:8.2f} ms  p95 {own['p95']:8.2f} ms  CPU {own['cpu']:8.2f} ms")
        elif name != "documents" and value is not None:
            print(f"  {name}: {value:.4g}", flush=True)


def timed(work: Callable[[], Any]) -> float:
    """Return the median seconds of five calls."""
    spent = []
    for _ in range(5):
        before = time.perf_counter()
        work()
        spent.append(time.perf_counter() - before)
    return float(np.median(spent))


if __name__ == "__main__":
    main()
