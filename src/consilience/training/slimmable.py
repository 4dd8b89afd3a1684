"""Train a slimmable multi-task network: full, smallest and random widths in every step, features kept alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import DataError, Problems, RequestError
from consilience.models.slimmable import SlimmableNetwork, Widths
from consilience.training.fitting import TrainingState, fit

__all__ = ["SlimmableTraining", "Target", "train_slimmable"]


@dataclass(frozen=True)
class Target:
    """What a task should give: classes (n,) int64 with "cross_entropy", or numbers (n, outputs) with "squared"."""

    values: NDArray[np.generic]
    loss: Literal["cross_entropy", "squared"] = "cross_entropy"


@dataclass(frozen=True)
class SlimmableTraining:
    """Steps of AdamW.

    random: widths drawn per step beside the full and the smallest. distil: weight of the configuration-invariant
    distillation of features (gamma; 0 is without). logits: weight of the full network's outputs as targets of the
    others, off by default. only: widths to train alone, for a dedicated network of fixed width.
    """

    steps: int = 300
    batch: int = 64
    learning_rate: float = 2e-3
    random: int = 2
    distil: float = 1.0
    logits: float = 0.0
    only: Widths | None = None
    schedule: str = "linear"
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0


def train_slimmable(
    network: SlimmableNetwork,
    inputs: NDArray[np.float32],
    targets: Mapping[str, Target],
    settings: SlimmableTraining,
    *,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> TrainingState:
    """Train a network in place, and return losses and times.

    >>> from consilience.models.slimmable import SlimmableConfig
    >>> network = SlimmableNetwork(SlimmableConfig(2, (8,), 4, {"sign": 2}))
    >>> x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    >>> state = train_slimmable(network, x, {"sign": Target((x[:, 0] > 0).astype(np.int64))}, SlimmableTraining(30))
    >>> state.losses[-1] < state.losses[0]
    True

    A step runs the full network, the smallest and `random` others on one batch and adds, for each, the losses of all
    tasks, and for each but the full one `distil` times the mean over tasks of |n(P F_w) - n(P F)|^2, with F_w the
    features of that width, F those of the full encoder (no gradient), P the task's first decoder layer and n bringing
    to length 1. That form of the distillation is this project's: the paper's was not available.

    inputs (n, inputs) float32; targets of every task of the network. Examples and widths are drawn by (seed, step).
    Raises DataError for targets that do not fit, WorkError when a loss is not finite.
    """
    _check(network, inputs, targets)
    x = torch.from_numpy(np.ascontiguousarray(inputs, np.float32))
    wanted = {task: torch.from_numpy(np.ascontiguousarray(target.values)) for task, target in targets.items()}
    config = network.config
    choices = [settings.only] if settings.only is not None else None

    def loss_at(step: int) -> tuple[Tensor, int]:
        bits = uniform_bits(stream_key(seed, "examples", str(step)), 0, len(x))
        rows = torch.from_numpy(np.argpartition(bits, min(settings.batch, len(x)) - 1)[: settings.batch])
        batch, total = x[rows], []
        full = network.features(batch, 1.0)
        teacher = {task: network.decode(full, task, 1.0) for task in targets} if settings.logits else {}
        for widths in choices or (config.full, config.smallest, *_drawn(network, settings.random, seed, step)):
            features = network.features(batch, widths.encoder)
            for task, width in widths.decoders.items():
                found = network.decode(features, task, width)
                total.append(_loss(found, wanted[task][rows], targets[task].loss))
                if settings.logits and widths != config.full:
                    total.append(settings.logits * _towards(found, teacher[task].detach(), targets[task].loss))
            if settings.distil and choices is None and widths.encoder < 1:
                apart = [_distance(network, task, features, full.detach()) for task in targets]
                total.append(settings.distil * torch.stack(apart).mean())
        return torch.stack(total).sum(), len(batch)

    network.train()
    state = fit(loss_at, dict(network.named_parameters()), settings, check=check)
    network.eval()
    return state


def _drawn(network: SlimmableNetwork, count: int, seed: int, step: int) -> list[Widths]:
    config, found = network.config, []
    draws = uniform_bits(stream_key(seed, "widths", str(step)), 0, count * (1 + len(config.outputs)))
    picked = [config.choices[int(draw) % len(config.choices)] for draw in draws]
    for place in range(count):
        encoder, *decoders = picked[place * (1 + len(config.outputs)) : (place + 1) * (1 + len(config.outputs))]
        found.append(Widths(encoder, dict(zip(config.outputs, decoders, strict=True))))
    return found


def _loss(found: Tensor, wanted: Tensor, kind: str) -> Tensor:
    return functional.cross_entropy(found, wanted) if kind == "cross_entropy" else functional.mse_loss(found, wanted)


def _towards(found: Tensor, teacher: Tensor, kind: str) -> Tensor:
    if kind == "squared":
        return functional.mse_loss(found, teacher)
    return functional.cross_entropy(found, teacher.softmax(dim=1))


def _distance(network: SlimmableNetwork, task: str, features: Tensor, full: Tensor) -> Tensor:
    slim = functional.normalize(network.projected(features, task), dim=1)
    with torch.no_grad():
        whole = functional.normalize(network.projected(full, task), dim=1)
    return (slim - whole).square().sum(dim=1).mean()


def _check(network: SlimmableNetwork, inputs: NDArray[np.float32], targets: Mapping[str, Target]) -> None:
    problems = Problems()
    config = network.config
    if set(targets) != set(config.outputs):
        problems.add(f"targets of {sorted(targets)}, the network has the tasks {sorted(config.outputs)}")
    if inputs.ndim != 2 or inputs.shape[1:] != (config.inputs,) or not len(inputs):
        problems.add(f"inputs have shape {inputs.shape}, expected (examples, {config.inputs})")
    for task, target in targets.items():
        shape = (len(inputs),) if target.loss == "cross_entropy" else (len(inputs), config.outputs.get(task, 0))
        if target.loss not in ("cross_entropy", "squared"):
            raise RequestError(f"task {task}: loss {target.loss!r} is unknown; use cross_entropy or squared")
        if target.values.shape != shape:
            problems.add(f"task {task}: targets have shape {target.values.shape}, expected {shape}")
        elif not np.isfinite(target.values).all():
            problems.add(f"task {task}: NaN or infinity among the targets")
    if not np.isfinite(inputs).all():
        problems.add("NaN or infinity among the inputs")
    problems.raise_if_any(DataError, "training data")
