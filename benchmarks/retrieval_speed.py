"""Speed and size of an index against faiss and bm25s glued by hand, in one run, interleaved.

`python benchmarks/retrieval_speed.py` makes documents of words that follow Zipf's law with unit vectors around topics,
indexes them, and measures: exact vector search against faiss's flat index, the hybrid search of a query (words and
vectors, fused) against bm25s + faiss + min-max by hand, with a filter that a tenth of the documents pass, and what
indexing costs. Query vectors are given: encoding is the same on both sides. Medians of interleaved runs; the figures go
to retrieval_speed.json. `--smoke` takes a few hundred documents.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
DIMENSION, WORDS, LENGTH, TOPICS = 384, 30_000, 40, 200


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
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
    """Return texts and vectors of documents and of queries."""
    random = np.random.default_rng(count)
    weights = 1 / np.arange(1, WORDS + 1)
    drawn = random.choice(WORDS, (count, LENGTH), p=weights / weights.sum())
    texts = [" ".join(f"word{number}" for number in row) for row in drawn]
    centres = random.normal(size=(TOPICS, DIMENSION))
    vectors = centres[random.integers(0, TOPICS, count)] + 0.7 * random.normal(size=(count, DIMENSION))
    asked = random.integers(0, count, queries)
    questions = [" ".join(f"word{number}" for number in random.permutation(drawn[row])[:6]) for row in asked]
    near = vectors[asked] + 0.5 * random.normal(size=(queries, DIMENSION))
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
    import bm25s
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
        stores = EmbeddedStores.create(folder, [VectorSpace("given", DIMENSION)], language=None)
        for start in range(0, count, 2048):
            some = range(start, min(start + 2048, count))
            documents = [Document(f"d{row}", texts[row], fields={"part": row % 10}) for row in some]
            stores.write(Batch(documents, {"given": vectors[start : start + 2048]}), replace=False)
        stores.compact()
    row: dict[str, Any] = {
        "documents": count,
        "indexed per CPU second": count / (time.process_time() - started),
        "bytes per document": stores.stats()["bytes"] / count,
        "private MB while indexing": (peak.private or 0) / 1e6,
    }
    flat = faiss.IndexFlatIP(DIMENSION)
    flat.add(vectors)
    words = bm25s.BM25()
    started = time.process_time()
    words.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)
    row["bm25s indexed per CPU second"] = count / (time.process_time() - started)
    index = Index(stores, spaces={"given": Given(dict(zip(questions, near, strict=True)))}, encoders={"given": ""})
    searcher = Searcher(index)

    def by_hand(place: int) -> list[int]:
        tokens = bm25s.tokenize([questions[place]], stopwords=None, show_progress=False)
        found, scores = words.retrieve(tokens, k=min(100, count), show_progress=False)
        values, places = flat.search(near[place : place + 1], min(100, count))
        fused: dict[int, float] = {}
        for numbers, own in ((found[0], scores[0]), (places[0], values[0])):
            low, span = float(own.min()), float(own.max() - own.min()) or 1.0
            for number, score in zip(numbers.tolist(), own.tolist(), strict=True):
                fused[number] = fused.get(number, 0.0) + 0.5 * (score - low) / span
        return sorted(fused, key=lambda number: -fused[number])[:10]

    ways: dict[str, Callable[[int], Any]] = {
        "faiss flat": lambda place: flat.search(near[place : place + 1], 10),
        "exact vectors": lambda place: stores.search_vectors("given", near[place : place + 1], 10),
        "bm25s": lambda place: words.retrieve(
            bm25s.tokenize([questions[place]], stopwords=None, show_progress=False), k=10, show_progress=False
        ),
        "words": lambda place: stores.search_text([questions[place]], 10),
        "by hand": by_hand,
        "hybrid": lambda place: searcher.search([questions[place]], 10),
        "hybrid, a tenth": lambda place: searcher.search([questions[place]], 10, where="part = 3"),
    }
    spent: dict[str, list[float]] = {way: [] for way in ways}
    worked: dict[str, list[float]] = {way: [] for way in ways}
    for place in range(queries):
        for way, search in ways.items():
            if place == 0:
                search(place)  # what is made once is made here
            before, used = time.perf_counter(), time.process_time()
            search(place)
            spent[way].append(1000 * (time.perf_counter() - before))
            worked[way].append(1000 * (time.process_time() - used))
    row["milliseconds"] = {
        way: {
            "p50": float(np.percentile(own, 50)),
            "p95": float(np.percentile(own, 95)),
            "cpu": float(np.median(worked[way])),
        }
        for way, own in spent.items()
    }
    cpu = {way: own["cpu"] for way, own in row["milliseconds"].items()}
    row["hybrid, CPU times by hand"] = cpu["hybrid"] / cpu["by hand"]
    row["exact vectors, CPU times faiss"] = cpu["exact vectors"] / cpu["faiss flat"]
    agreed = [
        len(set(by_hand(place)) & {int(hit.id[1:]) for hit in searcher.search([questions[place]], 10)[0]})
        for place in range(min(queries, 50))
    ]
    row["of 10 hits the same"] = float(np.mean(agreed))
    batch = timed(lambda: stores.search_vectors("given", near, 10)) / timed(lambda: flat.search(near, 10))
    row["exact vectors, a batch, times faiss"] = batch
    stores.close()
    shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{count} documents, {threads} threads")
    for name, value in row.items():
        if name == "milliseconds":
            for way, own in value.items():
                print(f"  {way:<18} p50 {own['p50']:8.2f} ms  p95 {own['p95']:8.2f} ms  CPU {own['cpu']:8.2f} ms")
        elif name != "documents":
            print(f"  {name}: {value:.4g}")
    return row


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
