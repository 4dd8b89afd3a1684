"""Digit views with models that are of no use: what a pool of unknown checkpoints may hold."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from consilience.bench.experiments.images import DigitViews
from consilience.core.randomness import stream_key
from consilience.models.image import ImageEncoder
from consilience.training.images import train_images

if TYPE_CHECKING:
    from consilience.bench.experiments.family import State

__all__ = ["DigitPool"]


class DigitPool(DigitViews):
    """The toy of `DigitViews`, and models that were fine-tuned on shuffled labels.

    >>> family = DigitPool("mild", base_steps=1, expert_steps=1)
    >>> set(family.irrelevant(0, seed=0)) == set(family.base(0))
    True
    """

    def irrelevant(self, index: int, seed: int) -> State:
        """Return the base fine-tuned on a view whose labels are shuffled, for as long as an expert.

        Views take turns; each index has another order of labels.
        """
        task = self.tasks[index % len(self.tasks)]
        start = self.base(seed)
        encoder = ImageEncoder(self.config, start)
        part = self.sets[task].view("train")
        random = np.random.Generator(np.random.Philox(stream_key(seed, "irrelevant", str(index))))
        wrong = replace(part, labels=random.permutation(part.known_labels))
        train_images(encoder, {task: wrong}, {task: self.head(start, task)}, self.training, seed=seed)
        return encoder.state() | {name: value for name, value in start.items() if name not in encoder.names}
