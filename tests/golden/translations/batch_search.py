"""Batch hybrid search: the tree of cuts, the groups of queries, and the answers by every way of execution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from consilience.retrieval.batches import BatchIndex, HybridQuery, search_batch, search_one
from consilience.retrieval.batches.index import nearest_lists
from consilience.retrieval.batches.partition import Cut, Workload, candidate_cuts
from consilience.retrieval.batches.search import group_queries
from consilience.stores.where import Compare, Filter, parse_where
from tests.golden.translate import Translation

Case = Mapping[str, Any]


def _filter(conditions: Any) -> Filter:
    return parse_where({"and": [{field: {operator: value}} for field, operator, value in conditions]})


def _cut(cut: Cut) -> list[Any]:
    if cut.where is None:
        return ["centroid", "in", list(cut.centroids)]
    assert isinstance(cut.where, Compare)
    return [cut.where.field, "==" if cut.where.operator == "=" else cut.where.operator, cut.where.values[0]]


def hqi(case: Case) -> list[str]:
    """Nearest centroids, cuts, steps, leaves, costs and groups as they are; the five nearest by all executions."""
    asked, given, expected = case["params"], case["input"], case["expected"]
    vectors, middle = np.array(given["vectors"], np.float32), np.array(given["centroids"], np.float32)
    filters = [_filter(conditions) for conditions in given["templates"]]
    queries = [HybridQuery(own["vector"], filters[own["template"]], asked["top_k"]) for own in given["queries"]]
    probed = np.array([own["vector"] for own in given["queries"]], np.float32)
    sets = np.sort(nearest_lists(probed, middle, "l2", asked["query_centroids"]), axis=1).tolist()
    templates = [own["template"] for own in given["queries"]]
    index = BatchIndex.build(
        vectors,
        given["attributes"],
        workload=queries,
        templates=filters,
        centroids=middle,
        nprobe=asked["query_centroids"],
        min_leaf=asked["min_leaf"],
        centroid_cuts=len(queries),
    )
    lists, tree = nearest_lists(vectors, middle, "l2", 1)[:, 0], index.tree
    leaves = tree.route(index.columns, lists)
    workload = Workload(tuple(filters), tuple(templates), tuple(map(tuple, sets)))
    ours = {
        "candidate_cuts": [_cut(cut) for cut in candidate_cuts(workload, len(queries))],
        "query_centroids": sets,
        "centroid_of_vector": lists.tolist(),
        "cost_unpartitioned": tree.cost_unpartitioned,
        "steps": [{"leaf": s.leaf, "cut": _cut(s.cut), "tuples_skipped": s.tuples_skipped} for s in tree.steps],
        "cost_final": tree.cost,
        "leaves": [np.flatnonzero(leaves == leaf).tolist() for leaf in range(len(tree.descriptions))],
        "query_matrix_groups": [
            {"template": group.template, "centroid": group.list, "queries": group.queries.tolist()}
            for group in group_queries(templates, sets)
        ],
    }
    theirs = {**expected, "candidate_cuts": given["candidate_cuts"]}
    theirs["query_centroids"] = [own["centroids"] for own in given["queries"]]
    problems = [
        f"{name}: {found} where {theirs[name]} is expected" for name, found in ours.items() if found != theirs[name]
    ]
    whole = BatchIndex.build(vectors, given["attributes"], centroids=middle)
    answers = {
        "single": [search_one(whole, query, exact=True) for query in queries],
        "batched": search_batch(whole, queries, exact=True).hits,
        "partitioned": [search_one(index, query, exact=True) for query in queries],
        "partitioned and batched": search_batch(index, queries, exact=True).hits,
    }
    for name, hits in answers.items():
        for number, (own, best) in enumerate(zip(hits, expected["exact_filtered_top5"], strict=True)):
            same = list(own.ids) == [key for key, _ in best]
            if not same or not np.allclose(own.distances, [far for _, far in best], **case["tolerance"]):
                problems.append(f"{name}, query {number}: {own.ids} {own.distances} where {best} is expected")
    return problems


CHECKS: Mapping[str, Callable[[Case], list[str]]] = {"hqi": hqi}
"""System -> check of one case; it returns what is wrong."""

TABLE: Mapping[tuple[str, str], Translation] = {}
"""Golden cases of batch search: no weights."""
