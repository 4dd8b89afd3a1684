"""Classifier: a multinomial logistic regression from an input's vector to the expert, fitted by scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.routers.centroid import softmax
from consilience.bundles.routers.protocol import BASE, Features, Router, checked_features
from consilience.errors import RequestError

__all__ = [
    "KIND",
    "LogisticRouter",
    "Measure",
    "check_measure",
    "checked_labels",
    "confidence_of",
    "fit_logistic",
]

Measure = Literal["probability", "entropy"]


class LogisticRouter(Router):
    """Weights are the class probabilities.

    coefficients: (classes, dimension), intercepts: (classes,), of vectors minus `mean`, over `scale`; classes are the
    experts and, where it was fitted with such examples, the base as the last. measure: what confidence is, the largest
    "probability", or 1 - "entropy" over its maximum.
    """

    kind: ClassVar[str] = "logistic"

    def __init__(
        self,
        coefficients: Features,
        intercepts: Features,
        experts: Sequence[str],
        *,
        mean: Features,
        scale: Features,
        measure: Measure = "probability",
        threshold: float | None = None,
    ) -> None:
        self.coefficients = np.asarray(coefficients, np.float64)
        self.intercepts = np.asarray(intercepts, np.float64)
        self.mean, self.scale = np.asarray(mean, np.float64), np.asarray(scale, np.float64)
        super().__init__(experts, self.coefficients.shape[1], threshold)
        if len(self.coefficients) not in (len(self.experts), len(self.experts) + 1):
            raise RequestError(f"router: {len(self.coefficients)} classes for {len(self.experts)} experts")
        self.measure = check_measure(measure)

    def scores(self, features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return class probabilities, and confidences."""
        vectors = (np.asarray(features, np.float64) - self.mean) / self.scale
        found = softmax(vectors @ self.coefficients.T + self.intercepts)
        weights = np.zeros((len(found), len(self.names)))
        weights[:, : found.shape[1]] = found
        return weights, confidence_of(found, self.measure)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the fitted numbers."""
        return {
            "coefficients": self.coefficients,
            "intercepts": self.intercepts,
            "mean": self.mean,
            "scale": self.scale,
        }

    def settings(self) -> dict[str, Any]:
        """Return what confidence is."""
        return {"measure": self.measure}

    @classmethod
    def restore(
        cls, experts: Sequence[str], threshold: float | None, settings: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> LogisticRouter:
        """Return the router that was saved."""
        return cls(
            arrays["coefficients"],
            arrays["intercepts"],
            experts,
            mean=arrays["mean"],
            scale=arrays["scale"],
            measure=settings["measure"],
            threshold=threshold,
        )


KIND = LogisticRouter


def fit_logistic(
    features: Features,
    labels: Sequence[str],
    *,
    regularisation: float = 1.0,
    measure: Measure = "probability",
    threshold: float | None = None,
) -> LogisticRouter:
    """Fit a router to inputs and the expert of each; the label "base" says that none is wanted.

    >>> vectors = np.array([[1.0, 0.1], [0.9, 0.0], [0.0, 1.0], [0.1, 0.8]])
    >>> router = fit_logistic(vectors, ["law", "law", "health", "health"])
    >>> router.route(np.array([[0.2, 0.9]])).chosen
    ('health',)

    regularisation: strength of the L2 penalty, 1/C of scikit-learn, on standardised vectors.
    """
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    vectors, names = checked_labels(features, labels)
    mean, scale = vectors.mean(axis=0), vectors.std(axis=0)
    scale[scale == 0] = 1.0
    experts = [name for name in names if name != BASE]
    if len(names) < 2:
        coefficients, intercepts = np.zeros((1, vectors.shape[1])), np.zeros(1)
    else:
        fitted = LogisticRegression(C=1 / regularisation, max_iter=2000)
        fitted.fit((vectors - mean) / scale, [names.index(label) for label in labels])
        coefficients, intercepts = fitted.coef_, fitted.intercept_
        if len(names) == 2:  # one row for two classes: their logits are minus and plus half of it
            coefficients, intercepts = (np.concatenate([-x, x]) / 2 for x in (coefficients, intercepts))
    return LogisticRouter(
        coefficients, intercepts, experts, mean=mean, scale=scale, measure=measure, threshold=threshold
    )


def checked_labels(features: Features, labels: Sequence[str]) -> tuple[NDArray[np.float64], list[str]]:
    """Return vectors and the names of the classes, the base last. Raises RequestError where they do not fit."""
    vectors = checked_features(features)
    if len(vectors) != len(labels) or not len(labels):
        raise RequestError(f"router: {len(vectors)} inputs with {len(labels)} labels; give one for each, at least 1")
    experts = sorted(set(labels) - {BASE})
    if not experts:
        raise RequestError("router: every label is 'base'; there is nothing to route to")
    return vectors, [*experts, *([BASE] if BASE in labels else [])]


def check_measure(measure: Measure) -> Measure:
    """Return the measure. Raises RequestError where it is unknown."""
    if measure not in get_args(Measure):
        raise RequestError(f"measure: {measure!r} is not one of {', '.join(get_args(Measure))}")
    return measure


def confidence_of(weights: NDArray[np.float64], measure: Measure) -> NDArray[np.float64]:
    """Return the confidence of class probabilities, 0 to 1."""
    if measure == "probability" or weights.shape[1] < 2:
        largest: NDArray[np.float64] = weights.max(axis=1)
        return largest
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    found: NDArray[np.float64] = 1 + (weights * logs).sum(axis=1) / np.log(weights.shape[1])
    return found
