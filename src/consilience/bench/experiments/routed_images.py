"""A bundle of image encoders on its family's tasks: vectors for a router, and scores under weights of each input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from consilience.bench.experiments.scores import Scores
from consilience.bundles.bundle import Bundle
from consilience.bundles.factored import Changes, mixed_weights, read_changes
from consilience.bundles.grouping import weight_groups
from consilience.models.image import ImageClassifier, ImageEncoder

if TYPE_CHECKING:
    from consilience.bench.experiments.family import Split
    from consilience.bench.experiments.images import ImageFamily

__all__ = ["RoutedImages"]

Weights = NDArray[np.float64]


class RoutedImages:
    """Experts of an image family in a bundle; tasks keep their own heads, which the shared model carries.

    Weights are (images, experts), in the order of `bundle.experts`.
    """

    def __init__(self, family: ImageFamily, bundle: Bundle) -> None:
        self.family, self.bundle = family, bundle
        self.state = bundle.state("base")
        self.encoder = ImageEncoder(family.config, self.state, name="shared")

    @cached_property
    def changes(self) -> Changes:
        """What the experts change."""
        return read_changes(self.bundle)

    def features(self, tasks: Sequence[str], split: Split | str) -> tuple[NDArray[np.float32], list[str]]:
        """Return the shared model's vectors of a split's images of some tasks, and the task of each."""
        vectors, labels = [], []
        for task in tasks:
            part = self.family.sets[task].view("train") if split == "train" else self.family.sets[task].examples(split)
            vectors.append(self.encoder.encode(part.images).numpy())
            labels += [task] * len(part.images)
        return np.concatenate(vectors), labels

    def scores(self, tasks: Sequence[str], split: Split, weights: Weights) -> Scores:
        """Measure: every image is classified by the model mixed with its weights (rows in the order of `features`)."""
        found, start = {}, 0
        for task in tasks:
            part = self.family.sets[task].examples(split)
            own = weights[start : start + len(part.images)]
            start += len(part.images)
            vectors = self.mixed(part.images, own)
            predicted = ImageClassifier(self.encoder, self.family.head(self.state, task)).classify(vectors).argmax(1)
            found[task] = (predicted.numpy() == part.known_labels).astype(np.float64)
        return Scores(found)

    def mixed(self, images: NDArray[np.float32], weights: Weights) -> torch.Tensor:
        """Return the vectors of images in one batch, mixed layer by layer."""
        own = torch.from_numpy(np.asarray(weights, np.float32))
        with mixed_weights(self.encoder.module, self.encoder.names, self.changes, own), torch.inference_mode():
            vectors: torch.Tensor = self.encoder.module(torch.from_numpy(np.ascontiguousarray(images)))
        return vectors

    def dense(self, images: NDArray[np.float32], weights: Weights) -> torch.Tensor:
        """Return the same vectors by whole models, one for each set of weights that occurs."""
        out = torch.empty(len(images), self.encoder.dimension)
        for values, rows in weight_groups(weights, 12):
            state = self.bundle.mix(dict(zip(self.bundle.experts, values, strict=True)))
            out[torch.from_numpy(rows)] = ImageEncoder(self.family.config, state).encode(images[rows])
        return out
