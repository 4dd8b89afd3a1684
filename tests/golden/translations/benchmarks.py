"""LIMIT, RAR-b and CRUMB: patterns, free embeddings, choices, measures of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from consilience.bench.free_embedding import fit_embeddings, moment_curve, retrieval_accuracy
from consilience.bench.limit import relevance_pattern
from consilience.bench.multiple_choice import multiple_choice, pooled
from consilience.bench.runs import best_passages, measure_run
from tests.golden.translate import Translation

Case = Mapping[str, Any]


def _near(label: str, found: Any, expected: Any, *, atol: float, rtol: float = 0.0) -> list[str]:
    ours, theirs = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=rtol, atol=atol):
        return []
    return [f"{label}: {ours.tolist()} where {theirs.tolist()} is expected"]


def _same(label: str, found: Any, expected: Any) -> list[str]:
    return [] if found == expected else [f"{label}: {found} where {expected} is expected"]


def limit(case: Case) -> list[str]:
    """Patterns exactly, the first steps of a free embedding, all subsets on the moment curve."""
    kind = case["case"].rsplit("_", 1)[0]
    return {"qrels": _patterns, "free_embedding": _embedding, "moment_curve": _curve}[kind](case)


def _patterns(case: Case) -> list[str]:
    given, expected = case["params"], case["expected"]
    queries, documents, k = given["num_queries"], given["num_docs"], given["k_per_query"]
    found = {
        "combinatorial": relevance_pattern("dense", documents=given["n"], k=given["k"]),
        "dense": relevance_pattern("dense", queries=queries, k=k),
        "cycle": relevance_pattern("cycle", documents=documents, k=k),
        "disjoint": relevance_pattern("disjoint", documents=documents, k=k),
    }
    problems = [p for name, ours in found.items() for p in _same(name, [list(one) for one in ours], expected[name])]
    used = len({one for held in found["dense"] for one in held})
    return problems + _same("dense_docs_used", used, expected["dense_docs_used"])


def _embedding(case: Case) -> list[str]:
    given, expected, params = case["input"], case["expected"], case["params"]
    start = (torch.tensor(given["queries"]), torch.tensor(given["documents"]))
    relevance, tolerance = given["relevant"], case["tolerance"]
    settings = {"temperature": params["temperature"], "learning_rate": params["learning_rate"]}
    settings |= {"dimension": params["d"], "steps": params["steps"]}
    fitted = fit_embeddings(relevance, params["n"], start=start, **settings)
    leaves = [one.clone().requires_grad_(True) for one in start]
    scores = leaves[0] @ leaves[1].T / params["temperature"]
    loss = -scores.log_softmax(dim=1).gather(1, torch.tensor(relevance)).mean()
    slopes = torch.autograd.grad(loss, leaves)
    problems = _near("loss", fitted.losses[0], expected["loss"], **tolerance)
    problems += _near("losses", fitted.losses, expected["loss_per_step"], **tolerance)
    for name, ours in (
        ("grad_queries", slopes[0]),
        ("grad_documents", slopes[1]),
        ("queries_after_5", fitted.queries),
        ("documents_after_5", fitted.documents),
    ):
        problems += _near(name, ours.numpy(), expected[name], **tolerance)
    problems += _near("accuracy_before", retrieval_accuracy(*start, relevance), expected["accuracy_before"], atol=1e-9)
    return problems + _near("accuracy_after_5", fitted.accuracy, expected["accuracy_after_5"], atol=1e-9)


def _curve(case: Case) -> list[str]:
    given, expected, k = case["input"], case["expected"], case["params"]["k"]
    documents, subsets, queries = moment_curve(given["t"], k)
    scores = queries @ documents.T
    top = [set(row[-k:]) for row in scores.argsort(axis=1).tolist()]
    problems = _near("documents", documents, given["documents"], **case["tolerance"])
    problems += _same("num_subsets", len(subsets), expected["num_subsets"])
    problems += _same("all retrieved", top == [set(own) for own in subsets], expected["all_subsets_retrieved"])
    for sample in expected["sample"]:
        place = subsets.index(tuple(sample["subset"]))
        problems += _near(f"query {sample['subset']}", queries[place], sample["query"], **case["tolerance"])
        problems += _near(f"scores {sample['subset']}", scores[place], sample["scores"], **case["tolerance"])
    return problems


def rar_b(case: Case) -> list[str]:
    """Choices among options, and ranks in the pool, with and without an instruction."""
    given, problems = case["input"], []
    pool = np.array(given["documents"], np.float64)
    right = [own[label] for own, label in zip(given["candidates"], given["labels"], strict=True)]
    for way in ("without_instruction", "with_instruction"):
        expected = case["expected"][way]
        questions = np.array(given[f"query_vectors_{way}"], np.float64)
        found = multiple_choice(questions, pool, given["candidates"], given["labels"])
        ranks, gains, recalled = pooled(questions, pool, right)
        problems += _same(way, list(found.chosen), expected["multiple_choice_predictions"])
        problems += _same(f"{way} ranks", ranks.tolist(), expected["full_gold_rank"])
        problems += _near(way, found.accuracy, expected["multiple_choice_accuracy"], **case["tolerance"])
        problems += _near(f"{way} nDCG", gains.mean(), expected["full_ndcg_at_10"], **case["tolerance"])
        problems += _near(f"{way} recall", recalled.mean(), expected["full_recall_at_10"], **case["tolerance"])
    return problems


def crumb(case: Case) -> list[str]:
    """The best passage of every document in order, and all measures after it stands for its document."""
    given, expected, problems = case["input"], case["expected"], []
    best = best_passages(given["run"])
    for query, passages in expected["best_passage_per_document_in_order"].items():
        run = given["run"][query]
        ours = [
            next(p for p, held in run.items() if held == score and p.startswith(f"{document}:"))
            for document, score in best[query].items()
        ]
        problems += _same(query, ours, passages)
    found = measure_run(best, given["qrels"], binary_qrels=given["binary_qrels"])
    for name, value in found.items():
        problems += _near(name, value, expected["metrics_after_mapping_to_parent"][name], **case["tolerance"])
    return problems


CHECKS: Mapping[str, Callable[[Case], list[str]]] = {
    "limit-benchmark": limit,
    "rar-b": rar_b,
    "complex-retrieval": crumb,
}
TABLE: Mapping[tuple[str, str], Translation] = {}
"""Cases of merges: none."""
