"""Routers from a suite, and their measurement: every expert of a bundle scored on every query of a split."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.bench.embeddings import Embedder, role_prompt
from consilience.bench.search import search
from consilience.bundles.encoding import BundleEncoder
from consilience.bundles.routers.centroid import fit_centroids
from consilience.bundles.routers.classifier import fit_logistic
from consilience.bundles.routers.measuring import (
    RoutingReport,
    choose_threshold,
    report_routing,
    threshold_keeping,
)
from consilience.bundles.routers.pilots import PilotLibrary
from consilience.bundles.routers.protocol import BASE, Router, Routing
from consilience.core.progress import Progress
from consilience.core.randomness import draw_some
from consilience.data import Suite, measure
from consilience.errors import DataError, LeakageError, RequestError

if TYPE_CHECKING:
    from consilience.bundles.bundle import Bundle
    from consilience.models.encoder import DenseEncoder

__all__ = [
    "AVERAGES",
    "RoutingData",
    "fit_domain_router",
    "fit_router",
    "gather_routing",
    "measure_router",
    "routing_data",
]

AVERAGES = ("mean of the vectors", "mean of the weights")
"""What the averages of experts are called among the scores."""

_KINDS = ("pilots", "centroid", "logistic", "perceptron")


@dataclass(frozen=True)
class RoutingData:
    """Queries of all domains in one pool: base vectors, the domain of each, and the score of every model on each.

    `features` (queries, dimension), `domains` one name per query, `scores` expert (and "base") -> (queries,).
    """

    split: str
    features: NDArray[np.float32]
    domains: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]

    def labels(self) -> list[str]:
        """Return the domain of each query where an expert has its name, else "base"."""
        return [domain if domain in self.scores else BASE for domain in self.domains]

    def take(self, domains: Collection[str]) -> RoutingData:
        """Return the queries of some domains."""
        rows = [row for row, domain in enumerate(self.domains) if domain in domains]
        scores = {name: found[rows] for name, found in self.scores.items()}
        return RoutingData(self.split, self.features[rows], tuple(self.domains[row] for row in rows), scores)

    def library(self, experts: Sequence[str]) -> PilotLibrary:
        """Return what pilots are made of."""
        return PilotLibrary(self.features, self.domains, {name: self.scores[name] for name in experts})

    def routed(self, router: Router) -> NDArray[np.float64]:
        """Return the score of each query under the model that a router chooses."""
        chosen = router.route(self.features).chosen
        return np.array([self.scores[name][row] for row, name in enumerate(chosen)])

    def by_domain(self, scores: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return scores of the queries, domain by domain."""
        return {domain: scores[[found == domain for found in self.domains]] for domain in dict.fromkeys(self.domains)}


def gather_routing(
    bundle: Bundle,
    suite: Suite,
    split: str,
    *,
    queries: int | None = None,
    cache: str | Path | None = None,
    average: Sequence[str] = (),
    progress: bool | None = None,
) -> RoutingData:
    """Encode a split's queries with every expert and score them; documents as the bundle's record says.

    queries: at most so many of each domain. cache: folder for the documents' vectors, where all share one space.
    average: experts whose mean is scored, too, under the names `AVERAGES`: of their vectors, and of their weights.

    A domain's documents are those the suite draws for the split; with one document space they are encoded once, by the
    shared encoder. Scores are the suite's metric, one per query.
    """
    encoder = BundleEncoder(bundle, max_tokens=suite.max_tokens)
    metric = suite.metrics[0]
    features: list[NDArray[np.float32]] = []
    domains: list[str] = []
    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (*bundle.experts, BASE)}
    models = tuple(scores)
    if average and len(encoder.spaces) > 1:
        raise RequestError("average: vectors of experts that encode documents too cannot be averaged")
    scores |= {name: [] for name in AVERAGES if average}
    drawn = suite.evaluation_sets(split=split)
    asked = role_prompt(encoder.shared, "query", suite.prompts)
    stored = role_prompt(encoder.shared, "document", suite.prompts)
    kept = None if cache is None else Path(cache)
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
    keeper = Embedder(encoder.documents, kept) if len(encoder.spaces) == 1 else None
    total = sum(min(len(one.queries), queries or len(one.queries)) for one in drawn.values()) * len(scores)
    with Progress(total, "query", f"scoring experts ({split})", enabled=progress) as bar:
        for domain, one in drawn.items():
            texts, qrels = list(one.queries[:queries]), one.qrels[:queries]
            if keeper is not None:
                documents = {BASE: keeper.vectors(one.documents, stored)}
            else:
                documents = {
                    space: encoder.encode_documents(list(one.documents), space=space, prompt=stored)
                    for space in encoder.spaces
                }
            vectors = {name: encoder.encode(texts, expert=name, prompt=asked) for name in models}
            features.append(vectors[BASE])
            if average:
                vectors[AVERAGES[0]] = np.mean([vectors[name] for name in average], axis=0)
                share = Routing(models, np.tile([(name in average) / len(average) for name in models], (len(texts), 1)))
                vectors[AVERAGES[1]] = encoder.encode(texts, routing=share, prompt=asked)
            for name, own in vectors.items():
                found = documents.get(name, documents[BASE])
                ranking = search(own, found, metric.cutoff, similarity=suite.similarity)
                scores[name].append(measure([metric], ranking, qrels)[metric])
                bar.advance(len(texts))
            domains += [domain] * len(texts)
    joined = {name: np.concatenate(found) for name, found in scores.items()}
    return RoutingData(split, np.concatenate(features), tuple(domains), joined)


def routing_data(
    encoder: DenseEncoder,
    queries: Mapping[str, Sequence[str]],
    split: str,
    models: Iterable[str],
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]] | None = None,
) -> RoutingData:
    """Return queries of all domains with the vectors of the base; scores of `models` on each where they are known.

    queries: domain -> texts. scores: model -> domain -> one score per query; None: NaN, which is enough for a router
    that is fitted by domain.
    """
    features = np.concatenate([encoder.encode(list(texts)) for texts in queries.values()])
    domains = tuple(domain for domain, texts in queries.items() for _ in texts)
    unknown = np.full(len(domains), np.nan)
    if scores is None:
        found = dict.fromkeys(models, unknown)
    else:
        found = {name: np.concatenate([scores[name][domain] for domain in queries]) for name in models}
    return RoutingData(split, features, domains, found)


def fit_domain_router(
    bundle: Bundle,
    suite: Suite,
    kind: Literal["centroid", "logistic", "perceptron"] = "logistic",
    *,
    queries: int = 100,
    keep: float = 0.95,
    seed: int = 0,
) -> Router:
    """Make a router from the domains of training queries alone: no expert is run.

    queries: of each domain, drawn at random among those that are held out nowhere. keep: share of the dev queries of
    domains with an expert that the threshold keeps from the base. Domains without an expert teach the base.
    """
    encoder = BundleEncoder(bundle, max_tokens=suite.max_tokens).shared
    asked = {}
    for name in suite.domains:
        texts = list(dict.fromkeys(query for query, _ in suite.training_pairs(name).pairs()))
        asked[name] = draw_some(texts, queries, seed, "router queries", name)
    held = {
        name: list(one.queries[:queries])
        for name, one in suite.evaluation_sets(split="dev").items()
        if name in bundle.experts
    }
    models = (*bundle.experts, BASE)
    router = fit_router(bundle, kind, routing_data(encoder, asked, "train", models), seed=seed)
    return threshold_keeping(router, routing_data(encoder, held, "dev", models).features, keep)


def fit_router(
    bundle: Bundle,
    kind: str,
    train: RoutingData,
    dev: RoutingData | None = None,
    *,
    k: int = 1,
    rule: Literal["mean", "max"] = "mean",
    seed: int = 0,
) -> Router:
    """Make a router from training queries and choose its threshold, below which the base answers, on dev queries.

    Pilots are labelled by the best expert of each query, the others by the domain: queries of a domain without an
    expert teach them the base. Vectors are compared by their cosine. k, rule: of pilots. Without dev: no threshold.

    Raises LeakageError for test queries, DataError where no domain has an expert.
    """
    if kind not in _KINDS:
        raise RequestError(f"router {kind!r} is unknown; there are {', '.join(_KINDS)}")
    for data in (train, dev):
        if data is not None and data.split == "test":
            raise LeakageError("a router is made from train and dev queries; the test split is for measuring only")
    if not set(train.domains) & set(bundle.experts):
        raise DataError(
            f"no domain ({', '.join(sorted(set(train.domains)))}) has the name of an expert "
            f"({', '.join(bundle.experts)}); name domains and experts alike"
        )
    router: Router
    if kind == "pilots":
        library = train.take(bundle.experts).library(bundle.experts)
        router = library.router(k, rule=rule, similarity="cosine", seed=seed)
    elif kind == "centroid":
        router = fit_centroids(train.features, train.labels())
    elif kind == "logistic":
        router = fit_logistic(train.features, train.labels())
    else:
        from consilience.bundles.routers.perceptron import fit_perceptron

        held = dev or train
        router = fit_perceptron(train.features, train.labels(), (held.features, held.labels()), batch=64, seed=seed)
    return router if dev is None else choose_threshold(router, dev.features, _scores(dev, router))


def measure_router(router: Router, data: RoutingData) -> RoutingReport:
    """Return accuracy, regret and cost of a router on queries it was not made from."""
    return report_routing(router, data.features, _scores(data, router), labels=data.domains)


def _scores(data: RoutingData, router: Router) -> dict[str, NDArray[np.float64]]:
    return {name: data.scores[name] for name in router.names}
