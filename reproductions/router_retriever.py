"""RouterRetriever: an expert query encoder per domain, chosen by the pilots nearest to the query; one index.

Lee et al. 2025, RouterRetriever: Routing over a Mixture of Expert Embedding Models, arXiv 2409.02685; here with LoRA
experts of all-MiniLM-L6-v2 for domains of the public data, trained in the run. Documents are encoded by the base alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.bench.experiments import Options, Scores, run
from consilience.bench.experiments.query_experts import QueryExperts
from consilience.bench.routing import AVERAGES, RoutingData, gather_routing, measure_router
from consilience.bundles.creation import create_bundle
from consilience.bundles.routers.classifier import fit_logistic
from consilience.bundles.routers.measuring import choose_threshold, threshold_keeping
from consilience.bundles.routers.protocol import Router
from consilience.training.query_side import QueryTraining

SEEDS = (0, 1, 2)
DOMAINS = ("code_python", "finance_tatqa", "lexical_wordnet", "cli_tldr")
TRAINING = QueryTraining(steps=150)
QUICK = QueryTraining(steps=4, batch=16)
QUERIES, DOCUMENTS = (150, 15), (1000, 40)  # of every domain and split, in a quick run the second
OVER_BASE, OVER_MULTITASK, OVER_RANDOM = 0.02, 0.005, 0.02  # nDCG@10, mean over the seeds
HELD_OUT = -0.005  # against the base, on a domain whose expert is left out
KEEP = 0.95  # of the known domains' dev queries are not sent to the base by the threshold then
MAIN = "pilots, mean"


def routers(train: RoutingData, dev: RoutingData, experts: tuple[str, ...]) -> dict[str, Router]:
    """Make every router from train queries, with the threshold of the highest dev score."""
    library = train.library(experts)
    made: dict[str, Router] = {
        MAIN: library.router(similarity="cosine"),
        "pilots, max": library.router(rule="max", similarity="cosine"),
        "pilots, mean, dot": library.router(),
        "nearest training query": library.router(None, rule="max", similarity="cosine"),
        "logistic, by domain": fit_logistic(train.features, train.labels()),
        "logistic, by best expert": fit_logistic(train.features, [str(label) for label in library.labels()]),
    }
    scores = {name: dev.scores[name] for name in (*experts, "base")}
    return {name: choose_threshold(router, dev.features, scores) for name, router in made.items()}


def held_out(train: RoutingData, dev: RoutingData, test: RoutingData, domain: str) -> NDArray[np.float64]:
    """Return the scores on a domain whose expert and queries the router never saw."""
    others = tuple(dict.fromkeys(name for name in train.domains if name != domain))
    router = train.take(others).library(others).router(similarity="cosine")
    return test.take([domain]).routed(threshold_keeping(router, dev.take(others).features, KEEP))


def measure(family: QueryExperts, seed: int, rows: list[list[Any]], facts: list[bool]) -> dict[str, Scores]:
    domains = family.domains
    experts = {domain: family.expert(domain, seed) for domain in domains}
    with tempfile.TemporaryDirectory() as folder:
        every = {**experts, "multitask": family.multitask(seed)}
        bundle = create_bundle(Path(folder) / "bundle", family.base, every, residual="adapter")
        one = create_bundle(Path(folder) / "one", family.base, {domains[0]: experts[domains[0]]}, residual="adapter")
        texts = family.data[domains[0]].documents.texts[:64]
        facts.append(bundle.encode_documents(texts).tobytes() == one.encode_documents(texts).tobytes())
        kept, suite = family.cache / "vectors", family.suite
        train, dev = (gather_routing(bundle, suite, split, cache=kept) for split in ("train", "dev"))
        test = gather_routing(bundle, suite, "test", cache=kept, average=domains)
    table = np.stack([test.scores[domain] for domain in domains])
    own = np.array([test.scores[domain][row] for row, domain in enumerate(test.domains)])
    found = {
        "base": test.scores["base"],
        "multi-task": test.scores["multitask"],
        "random expert": table.mean(axis=0),
        **{name: test.scores[name] for name in AVERAGES},
        "expert of the domain (oracle)": own,
        "best of each query (oracle)": np.maximum(table.max(axis=0), test.scores["base"]),
    }
    for name, router in routers(train, dev, domains).items():
        report = measure_router(router, test)
        found[name] = test.routed(router)
        cells = [report.label_accuracy, report.best_accuracy, report.to_base, report.routed, report.regret]
        rows.append([seed, name, *cells, f"{1e6 * report.seconds:.0f} us"])
    scores = {name: Scores(test.by_domain(values)) for name, values in found.items()}
    left = {domain: held_out(train, dev, test, domain) for domain in domains}
    return {**scores, "own expert left out": Scores(left)}


def main(options: Options) -> None:
    report = options.report("router-retriever", "RouterRetriever", source="arXiv 2409.02685")
    training, cache = options.pick(TRAINING, QUICK), options.cache
    caps = {"queries": options.pick(*QUERIES), "documents": options.pick(*DOCUMENTS)}
    family = QueryExperts(options.pick(DOMAINS, DOMAINS[:2]), training, cache=cache, **caps)
    rows: list[list[Any]] = []
    facts: list[bool] = []
    found: dict[str, list[Scores]] = {}
    for seed in options.seeds:
        for name, scores in measure(family, seed, rows, facts).items():
            found.setdefault(name, []).append(scores)
    table = [
        [seed, name, scores[place].mean, *scores[place].by_task.values()]
        for name, scores in found.items()
        for place, seed in enumerate(options.seeds)
    ]
    report.table(
        table, ["seed", "model", "mean", *family.domains], "nDCG@10 on test queries of all domains in one pool"
    )
    columns = ["seed", "router", "right domain", "best model", "to the base", "nDCG@10", "regret", "cost"]
    report.table(rows, columns, "Routers on test queries")

    routed, base = found[MAIN], found["base"]
    report.difference("routing is above the base by 2 points", routed, base, margin=OVER_BASE, decide="mean")
    text = "routing is above one multi-task expert by half a point"
    report.difference(text, routed, found["multi-task"], margin=OVER_MULTITASK, decide="mean")
    text = "routing is above a random expert by 2 points"
    report.difference(text, routed, found["random expert"], margin=OVER_RANDOM, decide="mean")
    pairs = list(zip(routed, found["best of each query (oracle)"], strict=True))
    detail = ", ".join(f"{one.mean:.4f} of {best.mean:.4f}" for one, best in pairs)
    report.claim("routing is not above the best model of each query", all(a.mean <= b.mean for a, b in pairs), detail)
    text = "without the domain's own expert, routing is not below the base by more than half a point"
    report.difference(text, found["own expert left out"], base, margin=HELD_OUT, decide="mean")
    detail = f"{sum(facts)} of {len(facts)} bundles"
    report.claim("documents have the same bytes whichever experts are loaded", all(facts), detail)
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
