"""What an index is measured against: bm25s + faiss glued by hand, and LanceDB; both in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DEPTH = 100  # hits of words and of vectors that are fused


class ByHand:
    """bm25s and faiss's flat index, fused by min-max with equal weights. words: None without texts."""

    def __init__(self, texts: Sequence[str], vectors: Any) -> None:
        import bm25s
        import faiss

        self.flat = faiss.IndexFlatIP(vectors.shape[1])
        self.flat.add(vectors)
        self.tokens, self.words, started = bm25s.tokenize, None, time.process_time()
        if texts:
            self.words = bm25s.BM25()
            self.words.index(self.cut(texts), show_progress=False)
        self.seconds = time.process_time() - started

    def cut(self, texts: Sequence[str]) -> Any:
        return self.tokens(list(texts), stopwords=None, show_progress=False)

    def by_vectors(self, vectors: Any, k: int = 10) -> tuple[Any, Any]:
        """Return rows and scores of the nearest."""
        scores, rows = self.flat.search(vectors, min(k, self.flat.ntotal))
        return rows, scores

    def by_words(self, text: str, k: int = 10) -> tuple[Any, Any]:
        """Return rows and scores of the best by BM25."""
        rows, scores = self.words.retrieve(self.cut([text]), k=min(k, self.flat.ntotal), show_progress=False)
        return rows, scores

    def hybrid(self, text: str, vector: Any) -> list[int]:
        """Return the ten best rows."""
        fused: dict[int, float] = {}
        for rows, scores in (self.by_words(text, DEPTH), self.by_vectors(vector, DEPTH)):
            low, span = float(scores[0].min()), float(scores[0].max() - scores[0].min()) or 1.0
            for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True):
                fused[row] = fused.get(row, 0.0) + 0.5 * (score - low) / span
        return sorted(fused, key=lambda row: -fused[row])[:10]


class Lance:
    """A table of LanceDB without an index of vectors (exact) and with one of words; fused as it does by default."""

    def __init__(self, place: Path, texts: Sequence[str], vectors: Any, threads: int) -> None:
        os.environ.setdefault("LANCE_LOG", "error")
        os.environ["LANCE_CPU_THREADS"] = str(threads)
        import lancedb
        import pyarrow as pa

        started, count = time.process_time(), len(vectors)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        ids = [f"d{row}" for row in range(count)]
        columns = {"id": ids, "part": [row % 10 for row in range(count)], "vector": lists}
        content = pa.table(columns | ({"text": list(texts)} if texts else {}))
        self.table = lancedb.connect(str(place)).create_table("documents", content)
        if texts:
            plain = {"stem": False, "remove_stop_words": False, "lower_case": False, "ascii_folding": False}
            self.table.create_fts_index("text", base_tokenizer="whitespace", **plain)
        self.seconds = time.process_time() - started
        self.bytes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())

    def by_vectors(self, vector: Any) -> list[str]:
        """Return the ids of the nearest."""
        asked = self.table.search(vector, vector_column_name="vector").distance_type("dot")
        found: list[str] = asked.limit(10).select(["id", "_distance"]).to_arrow()["id"].to_pylist()
        return found

    def hybrid(self, text: str, vector: Any, where: str | None = None) -> list[str]:
        """Return the ids of the ten best."""
        asked = self.table.search(query_type="hybrid").vector(vector).text(text).distance_type("dot")
        if where is not None:
            asked = asked.where(where, prefilter=True)
        found: list[str] = asked.limit(10).to_arrow()["id"].to_pylist()
        return found


def agreement(left: Sequence[Sequence[Any]], right: Sequence[Sequence[Any]]) -> float:
    """Return how many of ten hits are the same, in the mean."""
    return float(np.mean([len(set(a) & set(b)) for a, b in zip(left, right, strict=True)]))
