"""Two small tasks with an expert each, for learners of coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.tuning.toy import ToyPredictor, toy

Example = tuple[Any, int]


class Tasks:
    """Tasks "red" and "blue" of separable points; the experts are trained from one base, in single precision."""

    def __init__(self, steps: int = 60) -> None:
        self.models = {"red": toy(0), "blue": toy(0)}
        torch.manual_seed(9)
        self.models["blue"].head = torch.randn(3, 4).double()
        for model in self.models.values():
            model.module.float()
            model.head = model.head.float()
        self.base = {n: v.detach().clone() for n, v in self.models["red"].module.named_parameters()}
        self.examples = {"red": points(1), "blue": points(2)}
        self.experts = {task: trained(self.models[task], self.examples[task], steps) for task in self.models}

    def accuracy(self, state: dict[str, Tensor], task: str) -> float:
        (batch,) = self.models[task].batches(self.examples[task], 1000)
        own = {name: state[name] for name in self.base}
        return float((self.models[task].logits(batch, own).argmax(dim=1) == batch[1]).float().mean())

    def mean_accuracy(self, state: dict[str, Tensor]) -> float:
        return sum(self.accuracy(state, task) for task in self.models) / 2


def points(seed: int, count: int = 48) -> list[Example]:
    random = np.random.default_rng(seed)
    centres = 2 * random.standard_normal((3, 6))
    labels = random.integers(0, 3, count)
    rows = (centres[labels] + 0.7 * random.standard_normal((count, 6))).astype(np.float32)
    return list(zip(rows, labels.tolist(), strict=True))


def trained(model: ToyPredictor, data: list[Example], steps: int) -> dict[str, Tensor]:
    state = {name: value.detach().clone().requires_grad_(True) for name, value in model.module.named_parameters()}
    optimiser = torch.optim.Adam(list(state.values()), lr=0.02)
    (batch,) = model.batches(data, len(data))
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(batch, state).backward()
        optimiser.step()
    return {name: value.detach() for name, value in state.items()}
