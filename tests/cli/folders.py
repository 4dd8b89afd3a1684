"""Small things on disk for the commands: a retrieval dataset, an examples folder."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from consilience.data import RetrievalData


def write_dataset(folder: Path, data: RetrievalData) -> Path:
    """Write a dataset as the three parquet files."""
    folder.mkdir(parents=True)
    tables = data.tables
    split_of = dict(zip(tables.query_ids, tables.query_splits, strict=True))
    columns = {
        "corpus": {
            "_id": tables.document_ids,
            "title": [""] * len(tables.document_ids),
            "text": tables.document_texts,
        },
        "queries": {"_id": tables.query_ids, "text": tables.query_texts, "split": tables.query_splits},
        "qrels": {
            "query_id": [j.query_id for j in tables.judgements],
            "corpus_id": [j.document_id for j in tables.judgements],
            "score": [int(j.score) for j in tables.judgements],
            "split": [split_of[j.query_id] for j in tables.judgements],
        },
    }
    for name, content in columns.items():
        pq.write_table(pa.table({key: list(values) for key, values in content.items()}), folder / f"{name}.parquet")
    return folder
