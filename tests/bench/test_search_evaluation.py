"""Ways of searching compared on judged queries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilience.bench.runs import measure_run, read_run
from consilience.bench.search_evaluation import HYBRID, evaluate_index
from consilience.cli.app import run
from consilience.data.documents import Document
from consilience.data.retrieval import RetrievalData
from consilience.errors import DataError, RequestError
from consilience.retrieval.index import Index
from tests.cli.folders import write_dataset

TEXTS = {"sort": "Sort a list in place.", "open": "Open a file for reading.", "dog": "A small dog barks."}
QUERIES = {"q1": "sorting lists", "q2": "files", "q3": "barking dog"}
QRELS = {"q1": {"sort": 1.0}, "q2": {"open": 2.0, "dog": 1.0}, "q3": {"dog": 1.0}}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.create(tmp_path / "index") as made:
        made.add([Document(name, text) for name, text in TEXTS.items()])
        yield made


def test_metrics_are_those_of_trec_eval(index: Index, tmp_path: Path) -> None:
    found = evaluate_index(index, QUERIES, QRELS, metrics=("nDCG@10", "recall@10"))
    row = found.row("text")
    again = measure_run(row.run, QRELS)
    assert row.means["nDCG@10"] == pytest.approx(again["nDCG@10"])
    assert row.means["recall@10"] == pytest.approx(again["R@10"])
    assert found.write_runs(tmp_path / "runs") == ["text.run"]
    assert set(read_run(tmp_path / "runs" / "text.run")) == {"q1", "q2", "q3"}


def test_pieces_count_as_their_document_and_rows_go_by_their_own_id(tmp_path: Path) -> None:
    with Index.create(tmp_path / "index") as index:
        index.add(
            [
                Document("corpus.parquet#sort#1", TEXTS["dog"], parent="corpus.parquet#sort"),
                Document("corpus.parquet#sort#2", TEXTS["sort"], parent="corpus.parquet#sort"),
                Document("open#1", TEXTS["open"], parent="open"),
            ]
        )
        found = evaluate_index(index, QUERIES, {"q1": {"sort": 1}, "q2": {"open": 1}}, metrics=("nDCG@10",))
    assert found.row("text").means["nDCG@10"] == 1
    assert list(found.row("text").run["q1"]) == ["sort"]


def test_ways_are_paired_with_the_reference(index: Index) -> None:
    def nothing(texts: object, k: int) -> list[list[object]]:
        return [[] for _ in QUERIES]

    from consilience.retrieval.searcher import Searcher

    searcher = Searcher(index)
    ways = {"none": nothing, "text": lambda texts, k: searcher.search(list(texts), k)}
    found = evaluate_index(index, QUERIES, QRELS, ways=ways, reference="none")  # type: ignore[arg-type]
    difference = found.row("text").difference
    assert found.row("none").difference is None and difference is not None and difference.difference > 0.8
    assert found.summary()["ways"]["none"]["nDCG@10"] == 0


def test_wrong_requests(index: Index) -> None:
    with pytest.raises(RequestError, match="none of the 3 queries has a relevant document"):
        evaluate_index(index, QUERIES, {})
    with pytest.raises(DataError, match="none of the 1 relevant documents is in the index, such as 'cat'"):
        evaluate_index(index, QUERIES, {"q1": {"cat": 1}})
    with pytest.raises(RequestError, match="reference 'x' is none of the ways: text"):
        evaluate_index(index, QUERIES, QRELS, reference="x")


def test_eval_measures_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged = [(query, name, score) for query, labels in QRELS.items() for name, score in labels.items()]
    queries = {name: (text, "test") for name, text in QUERIES.items()}
    data = RetrievalData.of("tiny", documents=TEXTS, queries=queries, judgements=judged)
    folder = write_dataset(tmp_path / "tiny", data)
    out = str(tmp_path / "index")
    assert run(["index", str(folder / "corpus.parquet"), "--out", out, "--words-only", "--json"]) == 0
    capsys.readouterr()
    assert run(["eval", str(folder), "--index", out, "--json", "--runs", str(tmp_path / "runs")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["tiny"]["queries"] == 3
    assert HYBRID not in summary["tiny"]["ways"], "with one store there is nothing to fuse"
    assert (tmp_path / "runs" / "tiny" / "text.run").is_file()
    assert run(["eval", str(folder), "--index", out, "--queries", "2"]) == 0
    assert "tiny: 2 queries" in capsys.readouterr().out
    assert run(["eval", str(folder), "--index", out, "--model", "x", "--report", "r.html"]) == 2
    assert "--model is for models" in capsys.readouterr().err
    assert run(["eval", str(folder), "--runs", "runs"]) == 2
