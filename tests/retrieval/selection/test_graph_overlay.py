"""The graph over candidates: neighbours, links, PageRank against networkx, bounded walks, the hybrid score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.errors import DataError, RecipeError
from consilience.retrieval.selection import select
from consilience.retrieval.selection.graph_overlay import (
    add_links,
    bounded_hops,
    hybrid,
    neighbour_graph,
    overlay,
    personalised_pagerank,
)

CHAIN = np.eye(5)  # no neighbours by cosine


def chain(count=5):
    return add_links(neighbour_graph(np.eye(count)), [(i, i + 1) for i in range(count - 1)])


@pytest.mark.parametrize("block", [1 << 22, 100])
def test_neighbours_are_those_of_brute_force(monkeypatch, block):
    monkeypatch.setattr("consilience.retrieval.selection.graph_overlay._BLOCK", block)
    for seed in range(10):
        vectors = np.random.default_rng(seed).normal(size=(30, 4)).round(1) + 0.01
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = units @ units.T
        wanted = np.zeros((30, 30))
        for row in range(30):
            others = [o for o in np.argsort(-cosines[row], kind="stable") if o != row][:4]
            wanted[row, others] = np.maximum(cosines[row, others], 0)
        graph = neighbour_graph(vectors, 4)
        assert graph.toarray() == pytest.approx(np.maximum(wanted, wanted.T))
        assert (graph.data > 0).all() and graph.has_sorted_indices


def test_equal_neighbours_go_to_the_lower_row():
    graph = neighbour_graph([[1.0, 0.0]] * 4, 1).toarray()
    assert graph.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_few_candidates_make_small_graphs():
    assert neighbour_graph(np.zeros((0, 3))).shape == (0, 0)
    assert neighbour_graph([[1.0, 0.0]], 3).nnz == 0
    assert neighbour_graph([[1.0, 0.0], [1.0, 1.0]], 99).nnz == 2


def test_links_take_the_larger_weight_and_both_ways():
    graph = neighbour_graph([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], 1)
    weights = {"cites": 0.5, "same": 2.0}
    linked = add_links(graph, [(0, 1, "cites"), (2, 0, "cites"), (0, 2, "same"), (1, 1), (0, 2)], weights)
    assert linked.toarray().round(6).tolist() == [[0, 0.8, 2], [0.8, 0, 0.6], [2, 0.6, 0]]
    assert add_links(graph, []).toarray().tolist() == graph.toarray().tolist()
    with pytest.raises(DataError) as error:
        add_links(graph, [(0, 3), (0, 1, "cited")], {"cites": -1})
    for part in ("3 problems", "rows 0 to 2", "'cited' has no weight; known: cites", "not a number above 0"):
        assert part in str(error.value)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), damping=st.sampled_from([0.0, 0.3, 0.85, 0.97]))
def test_pagerank_is_that_of_networkx(seed, damping):
    networkx = pytest.importorskip("networkx")
    random = np.random.default_rng(seed)
    graph = neighbour_graph(random.normal(size=(20, 3)), 2)
    graph = add_links(graph, [tuple(pair) for pair in random.integers(0, 20, (4, 2))])
    restart = np.zeros(20)
    restart[random.integers(0, 20, 3)] = random.uniform(0.1, 1, 3)
    ours = personalised_pagerank(graph, restart, damping=damping)
    given_to = {i: float(x) for i, x in enumerate(restart) if x}
    theirs = networkx.pagerank(networkx.from_scipy_sparse_array(graph), damping, given_to, 5000, 1e-12)
    assert ours == pytest.approx([theirs[i] for i in range(20)], abs=1e-8)
    assert ours.sum() == pytest.approx(1)


def test_walks_stay_in_their_part_of_the_graph():
    graph = add_links(neighbour_graph(np.eye(4)), [(0, 1)])
    assert personalised_pagerank(graph, [1, 0, 0, 0])[2:].tolist() == [0, 0]
    assert personalised_pagerank(graph, [0, 0, 1, 0]).tolist() == [0, 0, 1, 0]
    assert personalised_pagerank(graph, [0, 0, 0, 0]).tolist() == [0, 0, 0, 0]


def test_bounded_walks_decay_and_stop():
    scores, hops = bounded_hops(chain(), [0.8, 0, 0, 0, 0], hops=2, decay=0.5)
    assert scores.tolist() == pytest.approx([0.8, 0.4, 0.2, 0, 0]) and hops.tolist() == [0, 1, 2, -1, -1]
    scores, hops = bounded_hops(chain(), [0.8, 0, 0, 0, 1.0], hops=3, decay=0.9)
    assert scores.tolist() == pytest.approx([0.8, 0.729, 0.81, 0.9, 1.0]) and hops.tolist() == [0, 1, 2, 1, 0]
    assert bounded_hops(chain(), [1, 0, 0, 0, 0], hops=0)[0].tolist() == [1, 0, 0, 0, 0]


def test_what_is_linked_comes_in_and_says_how():
    vectors = np.array([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.3, 0.0, 0.9], [0.0, 0.2, 1.0], [0.0, 1.0, 0.0]])
    query = np.array([1.0, 0.0, 0.0])
    relevance = np.maximum(vectors @ query / np.linalg.norm(vectors, axis=1), 0)
    graph = add_links(neighbour_graph(vectors, 1), [(0, 4, "cites")], {"cites": 1.0})
    for settings_ in ({}, {"hops": 2}):
        found = overlay(relevance, graph, starts=2, **settings_)
        assert found.starts == (0, 1)
        chosen = select(vectors, overlay=found, k=3, method="top_k")
        assert 4 in chosen.indices and 4 not in select(vectors, query=query, k=3, method="top_k").indices
        item = chosen.chosen[chosen.indices.index(4)]
        assert (item.reached, item.hops) == ("graph", 1)
        assert (chosen.chosen[0].index, chosen.chosen[0].hops) == (0, 0)
        assert item.relevance == found.relevance[4]


def test_the_hybrid_score_mixes_shares():
    assert hybrid([0.5, 1.0], [0.0, 0.4], beta=1).tolist() == [0.5, 1.0]
    assert hybrid([0.5, 1.0], [0.1, 0.4], beta=0).tolist() == [0.25, 1.0]
    assert hybrid([0.0, 0.0], [0.1, 0.4]).tolist() == [0.125, 0.5]
    assert overlay([0, 0, 0, 0, 0], chain()).relevance.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: personalised_pagerank(chain(), [1, 0, 0, 0, 0], damping=1.0), "damping: 1.0"),
        (lambda: bounded_hops(chain(), [1, 0, 0, 0, 0], hops=-1), "hops: -1"),
        (lambda: bounded_hops(chain(), [1, 0, 0, 0, 0], decay=0), "decay: 0"),
        (lambda: hybrid([1], [1], beta=1.5), "beta: 1.5"),
        (lambda: overlay([1, 0, 0, 0, 0], chain(), starts=0), "starts: 0"),
        (lambda: neighbour_graph(CHAIN, 0), "neighbours: 0"),
    ],
)
def test_settings_out_of_range(call, message):
    with pytest.raises(RecipeError, match=message):
        call()


def test_values_that_cannot_be_used():
    with pytest.raises(DataError, match=r"shape \(2,\) for a graph of 5"):
        overlay([1, 0], chain())
    with pytest.raises(DataError, match="candidate 1 is -1"):
        overlay([1, -1, 0, 0, 0], chain())
    with pytest.raises(DataError, match="'b' is zero"):
        neighbour_graph([[1.0, 0.0], [0.0, 0.0]], ids=["a", "b"])
