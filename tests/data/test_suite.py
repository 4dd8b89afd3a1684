from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from consilience.data import RetrievalData, Suite, evaluation_set
from consilience.data.sampling import draw_order
from consilience.errors import DataError
from tests.data.folders import QRELS, QUERIES, write_dataset


def many(documents: int = 40, queries: int = 12) -> RetrievalData:
    return RetrievalData.of(
        "many",
        documents={f"d{index}": f"text {index}" for index in range(documents)},
        queries={f"q{index}": (f"query {index}", "test") for index in range(queries)},
        judgements=[(f"q{index}", f"d{index + part}", 1 - part) for index in range(queries) for part in (0, 1)],
    )


def test_draws_by_the_protocol() -> None:
    data = many()
    drawn = evaluation_set(data, queries=5, documents=9)

    def order(key: str) -> str:
        return hashlib.sha256(("7:" + key).encode()).hexdigest()

    expected = sorted((f"q{index}" for index in range(12)), key=order)[:5]
    assert drawn.query_ids == tuple(expected)
    relevant = {"d" + query[1:] for query in expected}
    fill = [key for key in sorted((f"d{index}" for index in range(40)), key=order) if key not in relevant][:4]
    assert drawn.document_ids == tuple(sorted(relevant | set(fill), key=order))
    for query, judged in zip(drawn.query_ids, drawn.qrels, strict=True):
        assert [drawn.document_ids[position] for position in judged] == ["d" + query[1:]]
    texts = dict(zip(drawn.document_ids, drawn.documents, strict=True))
    assert all(text == f"text {key[1:]}" for key, text in texts.items())


def test_relevant_documents_are_never_cut_and_no_cap_takes_all() -> None:
    data = many()
    assert len(evaluation_set(data, queries=5, documents=2).documents) == 5
    everything = evaluation_set(data)
    assert (len(everything.queries), len(everything.documents)) == (12, 40)
    assert list(everything.document_ids) == sorted(everything.document_ids, key=draw_order)
    with pytest.raises(DataError, match="at most 0 queries were asked for"):
        evaluation_set(data, queries=0)


def test_queries_without_relevant_documents_are_left_out(tmp_path: Path) -> None:
    qrels = [*QRELS[:2], {**QRELS[2], "score": 0}]
    data = RetrievalData.open(write_dataset(tmp_path / "code", qrels=qrels))
    with pytest.raises(DataError, match="none of the 1 queries of 'test' has a relevant document"):
        evaluation_set(data)


def suite_file(folder: Path, text: str) -> Path:
    write_dataset(folder / "code")
    write_dataset(folder / "law", queries=QUERIES[2:], qrels=QRELS[2:])
    path = folder / "suite.yml"
    path.write_text(text)
    return path


def test_reads_a_suite_file(tmp_path: Path) -> None:
    text = """
version: 1
domains:
  code: code
  jura: {folder: law, documents: 2}
queries: 100
documents: 3
max_tokens: 64
metric: ndcg@5
also: [MRR@10]
prompts: {query: "search: "}
"""
    suite = Suite.open(suite_file(tmp_path, text))
    assert (suite.name, suite.queries, suite.max_tokens, suite.split) == ("suite", 100, 64, "test")
    assert [str(metric) for metric in suite.metrics] == ["nDCG@5", "MRR@10"]
    drawn = suite.evaluation_sets()
    assert {name: len(entry.documents) for name, entry in drawn.items()} == {"code": 3, "jura": 2}
    assert suite.prompts == {"query": "search: "}
    assert (suite.has_split("test"), suite.has_split("dev")) == (True, False)
    wider = Suite.open(tmp_path / "suite.yml", documents=3)
    assert len(wider.evaluation_set("jura").documents) == 3
    assert wider.content_hash != suite.content_hash


def test_a_folder_of_datasets_is_a_suite(tmp_path: Path) -> None:
    write_dataset(tmp_path / "code")
    (tmp_path / "notes").mkdir()
    suite = Suite.open(tmp_path, queries=7)
    assert (list(suite.domains), suite.queries) == (["code"], 7)
    with pytest.raises(DataError, match=r"neither a suite\.yml nor a sub-folder"):
        Suite.open(tmp_path / "notes")


def test_all_problems_of_a_suite_file_are_reported(tmp_path: Path) -> None:
    text = """
version: 2
domains: {code: code, gone: nowhere, odd: [1]}
querys: 100
documents: -3
metric: ndgc@10
similarity: cosin
split: tset
prompts: {qery: x}
"""
    with pytest.raises(DataError) as caught:
        Suite.open(suite_file(tmp_path, text))
    message = str(caught.value)
    for part in (
        "version: 2; this program reads version 1",
        "unknown key 'querys'; did you mean 'queries'?",
        "documents: -3; a whole number above 0",
        "metric 'ndgc@10' is unknown; did you mean 'ndcg'?",
        "similarity: 'cosin' is unknown; did you mean 'cosine'?",
        "split: 'tset' is unknown; did you mean 'test'?",
        "unknown key 'prompts.qery'; did you mean 'query'?",
        "nowhere: no such folder",
        "domains.odd: a folder, or a mapping with the key 'folder', is expected; found [1]",
    ):
        assert part in message


def test_a_split_that_a_domain_lacks_is_named(tmp_path: Path) -> None:
    suite = Suite.open(suite_file(tmp_path, "domains: {code: code, law: law}"))
    with pytest.raises(DataError, match=r"dataset law: no queries in the split 'dev'; it has test \(1\)"):
        suite.evaluation_sets(split="dev")
    with pytest.raises(DataError, match=r"unknown domain 'cod'; did you mean 'code'\?"):
        suite.evaluation_set("cod")


def test_unreadable_suite_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        Suite.open(tmp_path / "absent.yml")
    (tmp_path / "list.yml").write_text("- a\n")
    with pytest.raises(DataError, match="a mapping with the key 'domains' is expected, found list"):
        Suite.open(tmp_path / "list.yml")
    (tmp_path / "broken.yml").write_text("a: [")
    with pytest.raises(DataError, match="not a readable YAML file"):
        Suite.open(tmp_path / "broken.yml")
