"""Small datasets on disk in the project's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

CORPUS = [
    {"_id": "d1", "title": "Lists", "text": "sort in place"},
    {"_id": "d2", "title": "", "text": "open a file"},
    {"_id": "d3", "title": "Text", "text": "split a string"},
]
QUERIES = [
    {"_id": "q1", "text": "how to sort", "split": "train"},
    {"_id": "q2", "text": "read from disk", "split": "dev"},
    {"_id": "q3", "text": "cut words", "split": "test"},
]
QRELS = [
    {"query_id": "q1", "corpus_id": "d1", "score": 1, "split": "train"},
    {"query_id": "q2", "corpus_id": "d2", "score": 2, "split": "dev"},
    {"query_id": "q3", "corpus_id": "d3", "score": 1, "split": "test"},
    {"query_id": "q3", "corpus_id": "d1", "score": 0, "split": "test"},
]


def write_dataset(
    folder: Path,
    *,
    corpus: list[dict[str, Any]] | None = None,
    queries: list[dict[str, Any]] | None = None,
    qrels: list[dict[str, Any]] | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"corpus": (corpus, CORPUS), "queries": (queries, QUERIES), "qrels": (qrels, QRELS)}
    for name, (rows, usual) in given.items():
        parquet.write_table(pa.Table.from_pylist(usual if rows is None else rows), folder / f"{name}.parquet")
    return folder
