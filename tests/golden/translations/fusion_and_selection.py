"""Fusion, answer metrics and selection: cases that are plain lists and vectors, without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from consilience.data.answer_metrics import score_answers
from consilience.retrieval.fusion import fuse
from consilience.retrieval.selection import Selection, select
from consilience.retrieval.selection.graph_overlay import neighbour_graph, overlay
from tests.golden.translate import Translation

Case = Mapping[str, Any]


def _ranking(label: str, found: Iterable[Any], expected: Iterable[Any], case: Case) -> list[str]:
    """Compare keys in order and scores within the tolerance."""
    ours, theirs = [tuple(x) for x in found], [tuple(x) for x in expected]
    if [key for key, _ in ours] != [key for key, _ in theirs]:
        return [f"{label}: the order is {[key for key, _ in ours]}"]
    return _numbers(label, [score for _, score in ours], [score for _, score in theirs], case)


def _numbers(label: str, found: Any, expected: Any, case: Case) -> list[str]:
    ours, theirs = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if ours.shape == theirs.shape and np.allclose(ours, theirs, **case["tolerance"]):
        return []
    return [f"{label}: {ours.tolist()} where {theirs.tolist()} is expected"]


def _same(label: str, found: Any, expected: Any) -> list[str]:
    return [] if list(found) == list(expected) else [f"{label}: {list(found)} where {list(expected)} is expected"]


def heta_rag(case: Case) -> list[str]:
    """Weighted fusion joined by id; `official_unmerged` is the published defect and is not asked for."""
    alpha = case["params"]["alpha"]
    weights = {"vector": alpha, "full_text": 1 - alpha}
    lists = {name: [tuple(hit) for hit in hits] for name, hits in case["input"].items()}
    fused = fuse(lists, "weighted", weights=weights, k=case["params"]["top_n"])
    return _ranking("merged_by_id", fused, case["expected"]["merged_by_id"], case)


def rankify(case: Case) -> list[str]:
    """Three fusions (their rrf and interleave take no weights), and answer metrics per item and in percent."""
    given, expected = case["input"], case["expected"]
    lists = {part["retriever"]: list(zip(part["ids"], part["scores"], strict=True)) for part in given["lists"]}
    weights = dict(zip(lists, case["params"]["weights"], strict=True))
    fused = {
        "rrf": fuse(lists, "rrf", constant=case["params"]["rrf_k"]),
        "weighted_minmax": fuse(lists, "weighted", weights=weights),
    }
    problems = [p for name, ours in fused.items() for p in _ranking(name, ours, expected[name], case)]
    problems += _same("interleave", [key for key, _ in fuse(lists, "interleave")], expected["interleave"])
    ours_of = {"f1_score": "f1", "contains_match": "contains"}
    for name, scores in expected["answer_metrics_percent"].items():
        each = score_answers(ours_of.get(name, name), given["predictions"], given["answers"])
        problems += _numbers(name, [*each, 100 * np.mean(each)], [*scores["each"], scores["score"]], case)
    return problems


def semantic_compression(case: Case) -> list[str]:
    """The greedy set with its gains, the best set by brute force, top k, PageRank and the hybrid order."""
    asked, expected = case["params"], case["expected"]
    vectors, query, k = np.array(case["input"]["vectors"]), np.array(case["input"]["query"]), asked["k"]

    # The cases' vectors are rounded to five digits and compared as they are.
    relevance = np.maximum(vectors @ query, 0)

    def objective(indices: Iterable[int]) -> float:
        near = np.maximum(vectors[list(indices)] @ vectors.T, 0).max(axis=0)
        return float(relevance @ near + asked["lambda"] * relevance[list(indices)].sum())

    def pairs(selection: Selection) -> list[str]:
        name = "greedy" if selection.method == "facility_location" else "topk"
        label = f"mean_pair_similarity_{name}"
        return _numbers(label, selection.mean_similarity, expected[label], case)

    greedy = select(vectors, query=query, k=k, lambda_=asked["lambda"], unit=True)
    plain = select(vectors, query=query, k=k, method="top_k", unit=True)
    best = max(combinations(range(len(vectors)), k), key=objective)
    graph = overlay(
        relevance,
        neighbour_graph(vectors, asked["knn"], unit=True),
        beta=asked["beta"],
        starts=asked["num_seeds"],
        damping=asked["pagerank_damping"],
    )
    hybrid = select(vectors, overlay=graph, k=len(expected["hybrid_order"]), method="top_k")
    return [
        *_same("greedy_selection", greedy.indices, expected["greedy_selection"]),
        *_numbers("greedy_gains", [item.gain for item in greedy.chosen], expected["greedy_gains"], case),
        *_numbers("objective_greedy", greedy.objective, expected["objective_greedy"], case),
        *_numbers("objective of the set", objective(greedy.indices), expected["objective_greedy"], case),
        *_numbers("optimum_value", objective(best), expected["optimum_value"], case),
        *_same("optimum_set", best, expected["optimum_set"]),
        *_same("topk_by_similarity", sorted(plain.indices), sorted(expected["topk_by_similarity"])),
        *_numbers("objective_topk", objective(plain.indices), expected["objective_topk"], case),
        *pairs(greedy),
        *pairs(plain),
        *_numbers("pagerank", graph.graph, expected["pagerank"], case),
        *_numbers("hybrid_scores", graph.relevance, expected["hybrid_scores"], case),
        *_same("hybrid_order", hybrid.indices, expected["hybrid_order"]),
    ]


CHECKS: Mapping[str, Callable[[Case], list[str]]] = {
    "heta-rag": heta_rag,
    "rankify": rankify,
    "semantic-compression": semantic_compression,
}
"""System -> check of one case; it returns what is wrong."""

TABLE: Mapping[tuple[str, str], Translation] = {}
