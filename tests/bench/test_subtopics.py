"""Searches with several subtopics, copies and references: what is made, and how it is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.bench.subtopics import (
    LabelledCorpus,
    alpha_ndcg,
    draw_documents,
    follow_ups,
    labelled_corpus,
    near_copies,
    subtopic_queries,
)
from consilience.errors import DataError


def dataset(folder: Path) -> Path:
    parquet.write_table(
        pa.table({"_id": ["a", "b", "c"], "title": ["T", "", ""], "text": ["x", "y", "z"], "group": ["g", "h", "i"]}),
        folder / "corpus.parquet",
    )
    texts = pa.table({"_id": ["1", "2", "3"], "text": ["one", "two", "three"], "split": ["test", "test", "test"]})
    parquet.write_table(texts, folder / "queries.parquet")
    judged = pa.table({"query_id": ["1", "2", "3"], "corpus_id": ["a", "b", "c"], "score": [1.0, 1.0, 0.0]})
    parquet.write_table(judged, folder / "qrels.parquet")
    return folder


def test_a_corpus_with_labels(tmp_path: Path) -> None:
    corpus = labelled_corpus(dataset(tmp_path), "group")
    assert corpus.texts == ("T x", "y", "z") and corpus.queries == {"test": (("one", "a"), ("two", "b"))}
    assert len(draw_documents(corpus, 2).ids) == 2
    assert subtopic_queries(corpus, "test", 3, least=2) == subtopic_queries(corpus, "test", 3, least=2)
    with pytest.raises(DataError, match="2 labels; 3 are needed"):
        subtopic_queries(corpus, "test", 1)
    with pytest.raises(DataError, match="no column 'topic'"):
        labelled_corpus(tmp_path, "topic")
    with pytest.raises(DataError, match="no dataset"):
        labelled_corpus(tmp_path / "none", "topic")


@given(st.lists(st.sampled_from("abcx"), max_size=12))
def test_alpha_ndcg_is_a_share_of_the_best(found: list[str]) -> None:
    there = {label: found.count(label) for label in "abc"}
    value = alpha_ndcg(found, "abc", there)
    assert 0 <= value <= 1 + 1e-12
    best = sorted((label for label in found if label != "x"), key="abc".index)
    spread = [label for turn in range(12) for label in "abc" if best.count(label) > turn]
    assert value <= alpha_ndcg(spread, "abc", there) + 1e-12


def test_alpha_ndcg_rewards_what_is_new() -> None:
    there = {"a": 5, "b": 5}
    assert (
        alpha_ndcg("ab", "ab", there, k=2)
        == 1
        > alpha_ndcg("aa", "ab", there, k=2)
        > alpha_ndcg("ax", "ab", there, k=2)
    )
    assert alpha_ndcg("xx", "ab", there) == 0 and alpha_ndcg("ab", "ab", {}) == 0


def test_copies_differ_a_little() -> None:
    texts = ["the quick brown fox jumps over the lazy dog tonight", "hi", ""]
    made, origins = near_copies(texts, 3)
    assert origins == [0, 0, 0, 1, 1, 1, 2, 2, 2] and near_copies(texts, 3)[0] == made
    assert all(abs(len(one.split()) - 10) <= 1 and one != texts[0] for one in made[:3])


def test_second_hops_share_no_word_with_the_query() -> None:
    texts = ("Court fees, see 1-20 and 1-30.", "Payment in court.", "Payment in March.", "Court fees are here.")
    queries = {"test": (("fees of the court", "a"), ("fees of the court", "d"))}
    corpus = LabelledCorpus(("a", "b", "c", "d"), texts, ("1-10", "1-20", "1-30", "1-40"), queries)
    found, links = follow_ups(corpus, "test")
    assert [(one.first, one.second) for one in found] == [(0, 2)] and links == [(0, 1), (0, 2)]
    assert np.array(links).shape == (2, 2)
