from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from consilience.data import RetrievalData
from consilience.errors import DataError
from tests.data.folders import CORPUS, QRELS, QUERIES, write_dataset


def test_opens_the_layout(tmp_path: Path) -> None:
    data = RetrievalData.open(write_dataset(tmp_path / "code"))
    assert data.name == "code"
    assert data.documents.ids == ("d1", "d2", "d3")
    assert data.documents.texts == ("Lists sort in place", "open a file", "Text split a string")
    assert data.splits == {"train": 1, "dev": 1, "test": 1}
    assert data.queries("test").texts == ("cut words",)
    assert data.qrels("test") == {"q3": {"d3": 1.0, "d1": 0.0}}
    assert data.notes == ()


def test_content_hash_follows_content_not_files(tmp_path: Path) -> None:
    first = RetrievalData.open(write_dataset(tmp_path / "a"))
    second_folder = write_dataset(tmp_path / "b", qrels=[{"note": "x", **row} for row in QRELS])
    parquet.write_table(pa.Table.from_pylist(CORPUS), second_folder / "corpus.parquet", compression="zstd")
    assert RetrievalData.open(second_folder).content_hash == first.content_hash
    changed = [{**CORPUS[0], "text": "sort a copy"}, *CORPUS[1:]]
    assert RetrievalData.open(write_dataset(tmp_path / "c", corpus=changed)).content_hash != first.content_hash


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    folder = write_dataset(
        tmp_path / "bad",
        corpus=[*CORPUS, {"_id": "d1", "title": "", "text": "again"}, {"_id": "d9", "title": "", "text": None}],
        queries=[*QUERIES, {"_id": "q4", "text": "x", "split": "validation"}],
        qrels=[{**QRELS[0], "score": 0.5}],
    )
    with pytest.raises(DataError) as caught:
        RetrievalData.open(folder)
    message = str(caught.value)
    assert "4 problems" in message
    for part in (
        "corpus.parquet: 1 repeated _id: 'd1'",
        "corpus.parquet: 1 rows have no text: 'd9'",
        "queries.parquet: 1 rows of the unknown split 'validation'; known: dev, test, train",
        "qrels.parquet: 1 scores are not whole numbers: '0.5'",
    ):
        assert part in message


def test_missing_files_columns_and_rows(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "bad", queries=[{"_id": "q", "text": "t"}])
    (folder / "corpus.parquet").unlink()
    parquet.write_table(
        pa.table({"query_id": pa.array([], pa.string()), "corpus_id": [], "score": [], "split": []}),
        folder / "qrels.parquet",
    )
    with pytest.raises(DataError) as caught:
        RetrievalData.open(folder)
    message = str(caught.value)
    assert "corpus.parquet: no such file; expected the columns _id, title, text" in message
    assert "queries.parquet: no column split; found _id, text" in message
    assert "qrels.parquet: has no rows" in message
    with pytest.raises(DataError, match=r"no such folder; expected one with corpus\.parquet"):
        RetrievalData.open(tmp_path / "nowhere")


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "bad")
    (folder / "queries.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"queries\.parquet: not a readable parquet file"):
        RetrievalData.open(folder)


def test_unknown_ids_are_left_out_and_counted(tmp_path: Path) -> None:
    extra = [
        {"query_id": "q9", "corpus_id": "d1", "score": 1, "split": "test"},
        {"query_id": "q3", "corpus_id": "d8", "score": 1, "split": "test"},
        {"query_id": "q3", "corpus_id": "d9", "score": 1, "split": "test"},
    ]
    data = RetrievalData.open(write_dataset(tmp_path / "code", qrels=[*QRELS, *extra]))
    assert data.notes == (
        "1 judgements name 1 unknown queries, left out: 'q9'",
        "2 judgements name 2 unknown documents, left out: 'd8', 'd9'",
    )
    assert data.qrels("test") == {"q3": {"d3": 1.0, "d1": 0.0}}
    with pytest.raises(DataError, match="no judgement names a known query and a known document"):
        RetrievalData.open(write_dataset(tmp_path / "none", qrels=extra))


def test_a_query_belongs_to_one_split_and_a_pair_has_one_score(tmp_path: Path) -> None:
    rows = [*QRELS, {**QRELS[0], "split": "test"}, {**QRELS[3], "score": 1}]
    with pytest.raises(DataError) as caught:
        RetrievalData.open(write_dataset(tmp_path / "code", qrels=rows))
    assert "1 judgements carry another split than their query: 'q1'" in str(caught.value)
    assert "1 pairs are judged twice with different scores: 'q3 / d1'" in str(caught.value)


def test_unknown_and_absent_splits_are_named(tmp_path: Path) -> None:
    data = RetrievalData.open(write_dataset(tmp_path / "code", queries=QUERIES[:1], qrels=QRELS[:1]))
    with pytest.raises(DataError, match=r"unknown split 'tset'; did you mean 'test'\?"):
        data.queries("tset")
    with pytest.raises(DataError, match=r"no queries in the split 'test'; it has train \(1\)"):
        data.qrels("test")


def test_plain_values_are_checked_too() -> None:
    with pytest.raises(DataError, match=r"unknown splits \['valid'\], 1 judgements of unknown ids"):
        RetrievalData.of("x", documents={"d": "t"}, queries={"q": ("t", "valid")}, judgements=[("q", "nope", 1)])
