"""JaColBERTv2.5: distillation, dynamic query length and checkpoint averaging for late interaction, on a small budget.

Clavie 2024, Optimising Multi-Vector Retrievers with Constrained Resources. Encoders of 0.9 M parameters from nothing,
on English text of three kinds; the teacher is lexical (BM25 and the longest run of the query's words), not a reranker
of 568 M, and AdamW stands for the schedule-free optimiser: the recipe's comparisons are measured, not its scores.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from consilience.bench.experiments import Options, Report, Scores, compare, run
from consilience.bench.late_interaction import first_pairs, lexical_teacher, ndcg_of_queries
from consilience.data import EvaluationSet, evaluation_set
from consilience.data.reserved import default_data_folder
from consilience.data.retrieval import RetrievalData
from consilience.data.scored_groups import ScoredGroups, score_groups
from consilience.merging import Recipe
from consilience.models.creation import create_encoder
from consilience.models.late_interaction import LateInteraction, load_late_interaction
from consilience.training.late_interaction import train_late_interaction

SEEDS = (0, 1, 2)
GENERAL = ("code_python", "lexical_wordnet", "math_gsm8k")
DOMAIN = "health_medquad"
TRAINED, TESTED, DOCUMENTS = 800, 100, 500  # queries of a set; documents searched
WORDS, GROUP = 4000, 8
HOW: dict[str, Any] = {"batch": 16, "max_tokens": 96, "learning_rate": 1e-3, "dimension": 64, "progress": False}
STEPS, POST_STEPS = 240, 80
SINGLE = 0.02  # nDCG@10 of token vectors above that of their mean
KEPT, LOST = 0.7, 0.3  # of the gain on the domain, of the loss elsewhere
LONG = 24  # tokens


def main(options: Options) -> None:
    report = options.report("jacolbert", "JaColBERTv2.5", source="arXiv 2407.20750")
    trained, tested, documents = options.pick((TRAINED, TESTED, DOCUMENTS), (12, 4, 12))
    steps, post_steps = options.pick((STEPS, POST_STEPS), (2, 1))
    how = HOW | options.pick({}, {"batch": 4})
    root = default_data_folder() / "retrieval"
    samples = {
        name: evaluation_set(RetrievalData.open(root / name), "test", queries=tested, documents=documents)
        for name in (*GENERAL, DOMAIN)
    }
    general, domain = (
        first_pairs([RetrievalData.open(root / name) for name in names], trained, documents)
        for names in (GENERAL, (DOMAIN,))
    )
    found: dict[str, list[Scores]] = {}
    dynamic: dict[str, list[Scores]] = {"dynamic": [], "fixed": []}

    def measure(name: str, folder: Path, how_ranked: str = "tokens") -> None:
        model = load_late_interaction(folder, max_tokens=HOW["max_tokens"])
        scores = {one: ndcg_of_queries(model, sample, how=how_ranked) for one, sample in samples.items()}
        found.setdefault(name, []).append(Scores(scores))
        if name == "distillation":
            long = long_queries(model.encoder, samples, options.pick(LONG, 2))
            for length, ranked in (("dynamic", "tokens"), ("fixed", "fixed")):
                dynamic[length].append(Scores({"long": ndcg_of_queries(model, long, how=ranked)}))

    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as place:
            base = Path(place) / "base"
            create_encoder(base, general.documents.texts + domain.documents.texts, words=WORDS, seed=seed)
            groups: dict[str, ScoredGroups] = {
                name: score_groups(pairs, lexical_teacher, documents=options.pick(GROUP, 3), seed=seed)
                for name, pairs in (("general", general), ("domain", domain))
            }
            common = {**how, "steps": steps, "seed": seed, "settings": LateInteraction(masks=True)}
            for objective in ("distillation", "positive"):
                train_late_interaction(base, groups["general"], base.parent / objective, objective=objective, **common)
                measure(objective, base.parent / objective)
            original = base.parent / "distillation"
            measure("mean of token vectors", original, "mean")
            train_late_interaction(original, groups["domain"], base.parent / "post", steps=post_steps, seed=seed, **how)
            measure("post-trained", base.parent / "post")
            both = {"original": str(original), "post": str(base.parent / "post")}
            Recipe(method="linear", experts=both).run(base.parent / "average", progress=False)
            measure("average", base.parent / "average")
    claims(report, found, dynamic)
    report.finish()


def long_queries(encoder: Any, samples: dict[str, EvaluationSet], least: int) -> EvaluationSet:
    """The set with the most queries of more than `least` tokens, and only these."""
    kept = {}
    for name, sample in samples.items():
        lengths = encoder.tokenise(sample.queries).lengths
        kept[name] = [place for place, length in enumerate(lengths.tolist()) if length > least]
    name = max(kept, key=lambda one: len(kept[one]))
    sample, rows = samples[name], kept[name]
    ids, texts, labels = ([one[row] for row in rows] for one in (sample.query_ids, sample.queries, sample.qrels))
    return EvaluationSet(name, "test", tuple(ids), tuple(texts), sample.document_ids, sample.documents, tuple(labels))


def claims(report: Report, found: dict[str, list[Scores]], dynamic: dict[str, list[Scores]]) -> None:
    names = (*GENERAL, DOMAIN)
    rows = [[way, *(np.mean([one.by_task[name] for one in own]) for name in names)] for way, own in found.items()]
    report.table(rows, ["model", *names], f"nDCG@10, means of {len(found['average'])} seeds; {DOMAIN} is the domain")

    def only(way: str, names: tuple[str, ...]) -> list[Scores]:
        return [one.only(names) for one in found[way]]

    text = "distillation of normalised scores is not below the contrastive loss at equal steps (general sets)"
    report.difference(text, only("distillation", GENERAL), only("positive", GENERAL), decide="mean")
    text = f"token vectors are {100 * SINGLE:g} points above their mean"
    report.difference(text, found["distillation"], found["mean of token vectors"], margin=SINGLE, decide="mean")
    changes = {}
    for way in ("post-trained", "average"):
        for where, sets in (("domain", (DOMAIN,)), ("elsewhere", GENERAL)):
            changes[way, where] = compare(only(way, sets), only("distillation", sets)).difference
    gain, loss = changes["post-trained", "domain"], -changes["post-trained", "elsewhere"]
    kept, lost = changes["average", "domain"], -changes["average", "elsewhere"]
    detail = f"{kept:+.4f} of {gain:+.4f}"
    report.claim(
        f"the average keeps {KEPT:.0%} of the gain on the domain", kept >= KEPT * gain if gain > 0 else None, detail
    )
    detail = f"{lost:+.4f} of {loss:+.4f}"
    report.claim(f"and {LOST:.0%} of the loss elsewhere at most", lost <= LOST * loss if loss > 0 else None, detail)
    text = f"queries of more than {LONG} tokens: dynamic length is not worse than 32"
    report.difference(text, dynamic["dynamic"], dynamic["fixed"], decide="mean")


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
