"""How good a router is: accuracy, regret and cost on held-out inputs; and where its threshold should be."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.routers.protocol import BASE, Features, Router
from consilience.errors import RequestError

__all__ = ["RoutingReport", "choose_threshold", "report_routing", "threshold_keeping"]


@dataclass(frozen=True)
class RoutingReport:
    """A router on held-out inputs.

    label_accuracy: share of inputs sent to the expert of their own domain, of a domain without an expert to the base;
    None without labels. best_accuracy: share sent to a model that scores the highest there. routed: mean score of the
    models chosen, beside that of the `base`, the `best_single` model for all inputs, a `random` expert, and the
    `oracle`, the best model for each input. `regret`: oracle - routed. to_base: share sent to the base. seconds,
    operations: per input, beside the input's vector.
    """

    inputs: int
    label_accuracy: float | None
    best_accuracy: float
    routed: float
    base: float
    best_single: float
    random: float
    oracle: float
    to_base: float
    seconds: float
    operations: int

    @property
    def regret(self) -> float:
        """What is lost against the best model for each input."""
        return self.oracle - self.routed

    def rows(self) -> list[tuple[str, str]]:
        """Return the report as lines of a table."""
        label = "no labels" if self.label_accuracy is None else f"{self.label_accuracy:.1%}"
        return [
            ("inputs", str(self.inputs)),
            ("sent to the expert of their domain", label),
            ("sent to a model that is best there", f"{self.best_accuracy:.1%}"),
            ("sent to the base", f"{self.to_base:.1%}"),
            ("mean score, routed", f"{self.routed:.4f}"),
            ("mean score, base", f"{self.base:.4f}"),
            ("mean score, best single model", f"{self.best_single:.4f}"),
            ("mean score, random expert", f"{self.random:.4f}"),
            ("mean score, best model of each input", f"{self.oracle:.4f}"),
            ("regret against that", f"{self.regret:.4f}"),
            ("cost of routing an input", f"{1e6 * self.seconds:.1f} microseconds, {self.operations:,} operations"),
        ]


def report_routing(
    router: Router,
    features: Features,
    scores: Mapping[str, NDArray[np.float64]],
    *,
    labels: Sequence[str] | None = None,
) -> RoutingReport:
    """Measure a router on inputs that it was not made from.

    >>> from consilience.bundles.routers.centroid import CentroidRouter
    >>> router = CentroidRouter(np.eye(2), ["law", "health"])
    >>> scores = {"law": np.array([1.0, 0.2]), "health": np.array([0.5, 0.6]), "base": np.array([0.4, 0.7])}
    >>> report = report_routing(router, np.eye(2), scores, labels=["law", "cooking"])
    >>> report.label_accuracy, report.best_accuracy, round(report.regret, 3)
    (0.5, 0.5, 0.05)

    scores: of every expert and of "base" on the inputs, higher is better. labels: the domain of each input; one that
    is no expert's name belongs to the base. An input with several weights counts for the model of the largest.
    """
    missing = [name for name in router.names if name not in scores]
    if missing or any(len(found) != len(features) for found in scores.values()):
        raise RequestError(
            f"scores: {len(features)} inputs need scores of {', '.join(router.names)}; missing {missing}"
        )
    if not len(features):
        raise RequestError("a router cannot be measured on no inputs")
    started = time.perf_counter()
    chosen = router.route(features).chosen
    seconds = (time.perf_counter() - started) / len(features)
    table = np.stack([np.asarray(scores[name], np.float64) for name in router.names])
    places = [router.names.index(name) for name in chosen]
    routed = table[places, np.arange(len(chosen))]
    right = None
    if labels is not None:
        own = [label if label in router.experts else BASE for label in labels]
        right = float(np.mean([a == b for a, b in zip(own, chosen, strict=True)]))
    return RoutingReport(
        len(features),
        right,
        float((routed == table.max(axis=0)).mean()),
        float(routed.mean()),
        float(table[-1].mean()),
        float(table.mean(axis=1).max()),
        float(table[:-1].mean()),
        float(table.max(axis=0).mean()),
        float(np.mean([name == BASE for name in chosen])),
        seconds,
        router.operations,
    )


def choose_threshold(router: Router, features: Features, scores: Mapping[str, NDArray[np.float64]]) -> Router:
    """Return the router with the threshold of the highest mean score on dev inputs; of equal ones the lowest.

    scores: of every expert and of "base" on the inputs; some of the inputs should be of domains without an expert.
    """
    plain = router.with_threshold(None)
    chosen = plain.route(features).chosen
    missing = [name for name in router.names if name not in scores]
    if missing:
        raise RequestError(f"scores: those of {', '.join(missing)} are missing")
    own = np.array([scores[name][row] for row, name in enumerate(chosen)])
    gain = own - np.asarray(scores[BASE], np.float64)
    confidence = plain.confidence(features)
    order = np.argsort(confidence, kind="stable")
    kept = np.concatenate([np.cumsum(gain[order][::-1])[::-1], [0.0]])  # gain where the inputs from here on are kept
    levels = np.concatenate([confidence[order], [np.nextafter(confidence.max(), np.inf)]])
    first = np.concatenate([[True], np.diff(levels) > 0])  # equal confidences are kept or left together
    best = int(np.argmax(np.where(first, kept, -np.inf)))
    return router.with_threshold(None if best == 0 else float(levels[best]))


def threshold_keeping(router: Router, features: Features, share: float = 0.95) -> Router:
    """Return the router with the threshold that keeps a share of the inputs of its own domains from the base.

    For when nothing is known of other domains: features are held-out inputs of the experts' domains.
    """
    if not 0 < share <= 1:
        raise RequestError(f"share: {share} is not above 0 and at most 1")
    confidence = router.with_threshold(None).confidence(features)
    return router.with_threshold(float(np.quantile(confidence, 1 - share, method="lower")))
