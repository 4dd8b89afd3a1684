from __future__ import annotations

import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data import Metric, measure, ndcg_at, rank
from consilience.errors import DataError, WorkError


def test_values_computed_by_hand() -> None:
    ranking = np.array([[3, 0, 2, 1]])
    qrels = [{0: 2, 1: 1, 7: 1}]
    found = measure([Metric.parse(text) for text in ("nDCG@3", "recall@3", "MRR@10", "P@2")], ranking, qrels)
    ideal = 2 + 1 / math.log2(3) + 1 / 2
    expected = {"nDCG@3": (2 / math.log2(3)) / ideal, "recall@3": 1 / 3, "MRR@10": 1 / 2, "precision@2": 1 / 2}
    assert {str(metric): values[0] for metric, values in found.items()} == pytest.approx(expected)


def test_queries_keep_their_order_and_empty_ones_get_zero() -> None:
    scores = np.array([[0.1, 0.9], [0.1, 0.9], [0.1, 0.9]])
    assert ndcg_at(scores, [{0: 1}, {}, {1: 1}]) == pytest.approx([1 / math.log2(3), 0, 1])
    with pytest.raises(DataError, match="3 rankings for the judgements of 1 queries"):
        ndcg_at(scores, [{0: 1}])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_agrees_with_ir_measures_on_untied_scores(data: st.DataObject) -> None:
    documents = data.draw(st.integers(1, 30))
    scores = np.array([data.draw(st.permutations(range(documents)))], float)
    relevant = data.draw(st.dictionaries(st.integers(0, documents - 1), st.integers(0, 3), min_size=1))
    run = {"q": {str(index): float(score) for index, score in enumerate(scores[0])}}
    truth = {"q": {str(index): score for index, score in relevant.items()}}
    expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], truth, run)[ir_measures.nDCG @ 10]
    assert ndcg_at(scores, [relevant])[0] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 1000))
def test_rank_is_a_stable_sort(documents: int, k: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, (3, documents)).astype(np.float32)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert np.array_equal(rank(scores, k), expected)


def test_scores_that_are_not_numbers() -> None:
    with pytest.raises(WorkError, match="scores of query 1 are not numbers"):
        rank(np.array([[1.0, 2.0], [np.nan, 0.0]]), 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ndgc@10", "did you mean 'ndcg'"),
        ("nDCG", "write a name and a cutoff"),
        ("nDCG@0", "write a name and a cutoff"),
    ],
)
def test_unknown_metrics(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Metric.parse(text)
