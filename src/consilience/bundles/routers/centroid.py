"""Centroids: one vector per domain, the mean of its training inputs; an input goes to the nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.routers.protocol import BASE, Features, Router, checked_features
from consilience.errors import RequestError

__all__ = ["KIND", "CentroidRouter", "fit_centroids", "softmax"]


class CentroidRouter(Router):
    """Routes to the expert whose centroid has the largest cosine with the input.

    centroids: (experts, dimension) or, with one for the base as the last, (experts + 1, dimension). temperature: None
    gives an input to one expert; above 0, weights are softmax(cosine / temperature). Confidence is the largest cosine.
    """

    kind: ClassVar[str] = "centroid"

    def __init__(
        self,
        centroids: Features,
        experts: Sequence[str],
        *,
        temperature: float | None = None,
        threshold: float | None = None,
    ) -> None:
        self.centroids = np.asarray(checked_features(centroids), np.float32)
        super().__init__(experts, self.centroids.shape[1], threshold)
        if len(self.centroids) not in (len(self.experts), len(self.experts) + 1):
            raise RequestError(f"centroids: {len(self.centroids)} for {len(self.experts)} experts")
        if not (np.linalg.norm(self.centroids, axis=1) > 0).all():
            raise RequestError("centroids: one of them is a vector of zeros")
        if temperature is not None and temperature <= 0:
            raise RequestError(f"centroids: temperature {temperature} is not above 0")
        self.temperature = temperature

    def scores(self, features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weights and the largest cosine."""
        vectors = np.asarray(features, np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (lengths > 0).all():
            raise RequestError(f"router: the vector of input {int(np.flatnonzero(lengths == 0)[0])} is all zeros")
        centroids = self.centroids.astype(np.float64)
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        cosine = vectors / lengths @ centroids.T
        weights = np.zeros((len(vectors), len(self.names)))
        if self.temperature is None:
            weights[np.arange(len(vectors)), cosine.argmax(axis=1)] = 1.0
        else:
            weights[:, : len(centroids)] = softmax(cosine / self.temperature)
        return weights, cosine.max(axis=1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the centroids."""
        return {"centroids": self.centroids}

    def settings(self) -> dict[str, Any]:
        """Return the temperature."""
        return {"temperature": self.temperature}

    @classmethod
    def restore(
        cls, experts: Sequence[str], threshold: float | None, settings: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> CentroidRouter:
        """Return the router that was saved."""
        return cls(arrays["centroids"], experts, temperature=settings["temperature"], threshold=threshold)


KIND = CentroidRouter


def fit_centroids(
    features: Features,
    labels: Sequence[str],
    *,
    temperature: float | None = None,
    threshold: float | None = None,
) -> CentroidRouter:
    """Make a router from inputs and the expert of each; the label "base" says that none is wanted.

    >>> router = fit_centroids(np.array([[1.0, 0.1], [0.9, 0.0], [0.0, 1.0]]), ["law", "law", "health"])
    >>> router.experts, router.route(np.array([[0.2, 0.9]])).chosen
    (('health', 'law'), ('health',))
    """
    vectors = checked_features(features)
    if len(vectors) != len(labels) or not len(labels):
        raise RequestError(f"centroids: {len(vectors)} inputs with {len(labels)} labels; give one for each, at least 1")
    experts = sorted(set(labels) - {BASE})
    names = [*experts, *([BASE] if BASE in labels else [])]
    means = [vectors[[label == name for label in labels]].mean(axis=0) for name in names]
    return CentroidRouter(np.stack(means), experts, temperature=temperature, threshold=threshold)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of every row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found
