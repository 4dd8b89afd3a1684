"""Three tasks on one set of noisy digits: which digit, odd or even, and the picture without the noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consilience.bench.experiments.scores import Scores
from consilience.core.randomness import stream_key
from consilience.data.images import digits

if TYPE_CHECKING:
    from consilience.models.slimmable import SlimmableConfig, SlimmableNetwork, Widths
    from consilience.training.slimmable import SlimmableTraining, Target

__all__ = ["DigitTasks"]


class DigitTasks:
    """scikit-learn's digits with noise of standard deviation `noise` (pixels go from 0 to 1), the same for all seeds.

    Scores per image: 1 or 0 for "digit" and "parity"; for "denoise" 1 minus the squared error over the variance of
    clean pixels, at least 0. The networks: an encoder of two layers of 64 and 48 channels, decoders of 32.
    """

    tasks = ("digit", "parity", "denoise")

    def __init__(self, *, noise: float = 0.35) -> None:
        self.noise = noise

    @cached_property
    def _clean(self) -> Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]]:
        data = digits()
        parts = {split: data.examples(split) for split in ("train", "dev", "test")}
        return {split: (part.images.reshape(len(part), -1), part.known_labels) for split, part in parts.items()}

    def inputs(self, split: str) -> NDArray[np.float32]:
        """Return the noisy images of a split, (images, 64)."""
        clean = self._clean[split][0]
        random = np.random.Generator(np.random.Philox(stream_key(0, "noise", split)))
        return (clean + self.noise * random.standard_normal(clean.shape)).astype(np.float32)

    def targets(self, split: str) -> dict[str, Target]:
        """Return what each task should give."""
        from consilience.training.slimmable import Target

        clean, labels = self._clean[split]
        classes = {"digit": Target(labels), "parity": Target(labels % 2)}
        return {**classes, "denoise": Target(clean, "squared")}

    @cached_property
    def config(self) -> SlimmableConfig:
        """The sizes of the network."""
        from consilience.models.slimmable import SlimmableConfig

        return SlimmableConfig(64, (64, 48), 32, {"digit": 10, "parity": 2, "denoise": 64})

    def trained(self, settings: SlimmableTraining, seed: int, *, only: Widths | None = None) -> SlimmableNetwork:
        """Return a network trained at all widths, or at one alone."""
        from consilience.models.slimmable import SlimmableNetwork
        from consilience.training.slimmable import train_slimmable

        network = SlimmableNetwork(self.config, seed=seed)
        train_slimmable(network, self.inputs("train"), self.targets("train"), replace(settings, only=only), seed=seed)
        return network

    def scores(self, network: SlimmableNetwork, widths: Widths, *, split: str = "test") -> Scores:
        """Return the scores of a sub-network on every image, for the tasks that it serves."""
        import torch

        clean, labels = self._clean[split]
        with torch.inference_mode():
            outputs = network(torch.from_numpy(self.inputs(split)), widths)
        found = {task: values.numpy() for task, values in outputs.items()}
        by_task = {}
        for task, values in found.items():
            if task == "denoise":
                error = ((values - clean) ** 2).mean(axis=1) / clean.var()
                by_task[task] = np.maximum(1 - error, 0).astype(np.float64)
            else:
                wanted = labels if task == "digit" else labels % 2
                by_task[task] = (values.argmax(axis=1) == wanted).astype(np.float64)
        return Scores(by_task)

    def table(self, network: SlimmableNetwork) -> dict[str, dict[tuple[float, float], float]]:
        """Return each task's dev score at every width of encoder and decoder, for the search."""
        from consilience.models.slimmable import Widths

        found: dict[str, dict[tuple[float, float], float]] = {task: {} for task in self.tasks}
        for encoder in self.config.choices:
            for width in self.config.choices:
                scores = self.scores(network, Widths(encoder, dict.fromkeys(self.tasks, width)), split="dev")
                for task, value in scores.by_task.items():
                    found[task][encoder, width] = value
        return found
