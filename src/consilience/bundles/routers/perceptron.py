"""Perceptron: Twin-Merging's router, three linear layers with batch norm from an input's vector to the expert.

d -> 2d -> 2d -> experts, LeakyReLU and dropout 0.5 after the first two; cross-entropy on the expert's name, Adam at
5e-4, batches of 1024, 50 epochs; the epoch of the highest validation accuracy is kept.

Source: Lu et al. 2024, Twin-Merging, arXiv 2406.15479; code LZY-the-boys/Twin-Merging, router.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from consilience.bundles.routers.classifier import Measure, check_measure, checked_labels, confidence_of
from consilience.bundles.routers.protocol import BASE, Features, Router, checked_features
from consilience.errors import RequestError, WorkError

__all__ = ["KIND", "PerceptronRouter", "fit_perceptron"]


class PerceptronRouter(Router):
    """Weights are the softmax of the network's outputs. `state`: its tensors. measure: see `LogisticRouter`."""

    kind: ClassVar[str] = "perceptron"

    def __init__(
        self,
        state: Mapping[str, NDArray[Any]],
        experts: Sequence[str],
        *,
        measure: Measure = "probability",
        threshold: float | None = None,
    ) -> None:
        self.state = {name: np.array(value) for name, value in state.items()}
        classes, width = self.state["8.weight"].shape
        super().__init__(experts, width // 2, threshold)
        if classes not in (len(self.experts), len(self.experts) + 1):
            raise RequestError(f"router: {classes} classes for {len(self.experts)} experts")
        self.measure = check_measure(measure)
        self.network = _network(self.dimension, classes)
        self.network.load_state_dict({name: torch.from_numpy(value) for name, value in self.state.items()})
        self.network.eval()

    def scores(self, features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return class probabilities, and confidences."""
        with torch.inference_mode():
            logits = self.network(torch.from_numpy(np.asarray(features, np.float32)))
            found = logits.double().softmax(dim=1).numpy()
        weights = np.zeros((len(found), len(self.names)))
        weights[:, : found.shape[1]] = found
        return weights, confidence_of(found, self.measure)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the network's tensors."""
        return dict(self.state)

    def settings(self) -> dict[str, Any]:
        """Return what confidence is."""
        return {"measure": self.measure}

    @classmethod
    def restore(
        cls, experts: Sequence[str], threshold: float | None, settings: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> PerceptronRouter:
        """Return the router that was saved."""
        return cls(arrays, experts, measure=settings["measure"], threshold=threshold)


KIND = PerceptronRouter


def _network(dimension: int, classes: int) -> nn.Sequential:
    width = 2 * dimension
    return nn.Sequential(
        nn.Linear(dimension, width),
        nn.BatchNorm1d(width),
        nn.LeakyReLU(),
        nn.Dropout(0.5),
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.LeakyReLU(),
        nn.Dropout(0.5),
        nn.Linear(width, classes),
    )


def fit_perceptron(
    features: Features,
    labels: Sequence[str],
    validation: tuple[Features, Sequence[str]],
    *,
    learning_rate: float = 5e-4,
    batch: int = 1024,
    epochs: int = 50,
    seed: int = 0,
    measure: Measure = "probability",
    threshold: float | None = None,
) -> PerceptronRouter:
    """Train a router on inputs and the expert of each; the label "base" says that none is wanted.

    >>> rng = np.random.default_rng(0)
    >>> labels = ["law", "health"] * 40
    >>> vectors = rng.normal(size=(80, 4)) + np.array([[2.0, 0, 0, 0], [-2.0, 0, 0, 0]] * 40)
    >>> router = fit_perceptron(vectors[:60], labels[:60], (vectors[60:], labels[60:]), batch=20, learning_rate=5e-3)
    >>> router.route(np.array([[3.0, 0, 0, 0]])).chosen
    ('law',)

    validation: vectors and labels that choose the epoch, the first of the highest accuracy. The same seed gives the
    same router on one machine. Raises RequestError for batches of one input, WorkError where the loss diverges.
    """
    vectors, names = checked_labels(features, labels)
    held = checked_features(validation[0], vectors.shape[1])
    unknown = sorted(set(validation[1]) - set(names))
    if unknown or not len(held) or len(held) != len(validation[1]):
        raise RequestError(
            f"router: {len(held)} validation inputs with {len(validation[1])} labels, {unknown} unknown; validation "
            "inputs have the labels of the training inputs"
        )
    if batch < 2 or len(vectors) < 2 or epochs < 1:
        raise RequestError(f"router: batches of {batch}, {len(vectors)} inputs, {epochs} epochs; batch norm needs 2")
    inputs = torch.from_numpy(vectors.astype(np.float32))
    targets = torch.tensor([names.index(label) for label in labels])
    wanted = np.array([names.index(label) for label in validation[1]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(vectors.shape[1], len(names))
        optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
        best, kept = -1.0, {}
        for _ in range(epochs):
            network.train()
            order = torch.randperm(len(inputs))
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                if len(rows) < 2:  # batch norm has no variance of one input
                    continue
                loss = functional.cross_entropy(network(inputs[rows]), targets[rows])
                if not torch.isfinite(loss):
                    raise WorkError("router: the loss is NaN or infinite; use a lower learning rate")
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            network.eval()
            with torch.no_grad():
                found = network(torch.from_numpy(held.astype(np.float32))).argmax(dim=1).numpy()
            accuracy = float((found == wanted).mean())
            if accuracy > best:
                best, kept = accuracy, {name: value.clone().numpy() for name, value in network.state_dict().items()}
    experts = [name for name in names if name != BASE]
    return PerceptronRouter(kept, experts, measure=measure, threshold=threshold)
