"""The baselines of filtered search find what brute force finds when every list is probed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consilience.bench.filtered_search import (
    FILTERS,
    Baselines,
    answers,
    attributes,
    brute_force,
    clustered,
    hybrid_queries,
    recall,
    timed,
)
from consilience.retrieval.batches import BatchIndex, HybridQuery, search_batch

LISTS = 6


@pytest.fixture(scope="module")
def asked() -> tuple[Any, Any, list[HybridQuery], BatchIndex]:
    random = np.random.default_rng(3)
    vectors = clustered(600, random)
    fields = attributes(600, random)
    queries = hybrid_queries(vectors, FILTERS, 30, random, k=5)
    return vectors, fields, queries, BatchIndex.build(vectors, fields, lists=LISTS, nprobe=2)


def test_every_baseline_is_exact_when_every_list_is_probed(asked: Any) -> None:
    vectors, fields, queries, index = asked
    best = brute_force(vectors, fields, queries)
    peers = Baselines(index, vectors, fields, queries, probes=LISTS)
    assert peers.pre_filter(known=False) == peers.pre_filter(known=True) == best
    assert peers.post_filter(600) == best
    assert peers.faiss_search(together=False) == peers.faiss_search(together=True) == best
    assert answers(search_batch(index, queries, exact=True).hits) == best


def test_baselines_probe_the_lists_of_the_index(asked: Any) -> None:
    vectors, fields, queries, index = asked
    peers = Baselines(index, vectors, fields, queries, probes=2)
    assert peers.pre_filter(known=True) == answers(search_batch(index, queries).hits)


def test_post_filtering_fetches_until_its_recall_is_as_good(asked: Any) -> None:
    vectors, fields, queries, index = asked
    best = brute_force(vectors, fields, queries)
    peers = Baselines(index, vectors, fields, queries, probes=LISTS)
    fetch = peers.enough(best, 0.9)
    assert recall(peers.post_filter(fetch), best) >= 0.9
    assert fetch == 100 or recall(peers.post_filter(fetch // 2), best) < 0.9


def test_brute_force_orders_equal_distances_by_row() -> None:
    rows = np.array([[1, 0], [0, 0], [1, 0], [0, 1]], np.float32)
    fields = [{"a": number % 2} for number in range(4)]
    assert brute_force(rows, fields, [HybridQuery([0, 0], k=4), HybridQuery([0, 0], "a = 0", 4)]) == [
        [1, 0, 2, 3],
        [0, 2],
    ]


def test_every_way_runs_as_often_as_asked() -> None:
    calls: list[str] = []
    spent = timed({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 3
    assert set(spent) == {"a", "b"}
    assert all(own["cpu"] >= 0 for own in spent.values())
