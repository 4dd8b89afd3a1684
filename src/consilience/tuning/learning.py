"""Descent on the coefficients of a composition: the loop that learners share.

The weights are never trained: a step composes the model, takes the gradient of the losses with respect to its tensors,
and turns it into one of the coefficients (an inner product with the task vectors). So one backward pass of the network
serves any number of experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from consilience.core.randomness import stream_key
from consilience.errors import WorkError
from consilience.tuning.composition import Composition

if TYPE_CHECKING:
    from consilience.core.jobs import Job
    from consilience.models.model import Predictor

__all__ = [
    "Descent",
    "Guard",
    "Learned",
    "choice_problems",
    "entropy",
    "learn",
    "own_tensors",
    "shuffled_batch",
    "sound",
]

Losses = Callable[[int, Mapping[str, Tensor]], Iterator[tuple[str, Tensor]]]
"""Yields the parts of the loss of a step (from 1), each with the name of its task, as a function of the composed
tensors; their sum is descended."""

_FLAT = 1e-6  # a range of the loss below this, relatively, is flat
_FLAT_MEASUREMENTS, _FLAT_STEPS = 3, 20  # that the flat stretch has at the least
_DIVERGED = 10.0  # a rise above the first loss by so many times it, or by so many nats


@dataclass(frozen=True)
class Learned:
    """What a learner found: `values` (experts, blocks) are the coefficients, in the blocks of `composition`.

    `trace` has one entry per measurement: the step, the mean loss of a step since the last one, and what the learner
    measures. `facts` are the learner's findings in plain data; `notices` are to be shown to the user.
    """

    method: str
    composition: Composition = field(repr=False)
    values: Tensor = field(repr=False)
    trace: tuple[Mapping[str, Any], ...] = field(repr=False)
    facts: Mapping[str, Any]
    notices: tuple[str, ...] = ()

    @property
    def coefficients(self) -> list[dict[str, Any]]:
        """The entries of a recipe's `coefficients`."""
        return self.composition.coefficients(self.values)

    def recipe(self, *, base: str, experts: Mapping[str, str]) -> dict[str, Any]:
        """Return the merge as a recipe in plain data; base and experts are references."""
        return self.composition.recipe(self.values, base=base, experts=experts)

    def state(self) -> dict[str, Tensor]:
        """Return the merged state: what the recipe makes."""
        return self.composition.state(self.values)


@dataclass(frozen=True)
class Guard:
    """A label-free or held-out score (higher is better) that watches over the descent.

    It is measured before the first step and every `every` steps. When it falls more than `tolerance` below the best so
    far, the descent stops and the best coefficients are returned; `always_best`: they are returned in any case.
    `entry` gives what is measured, from the coefficients: plain numbers, of which "score" is the one that decides.
    """

    entry: Callable[[Tensor], dict[str, Any]]
    every: int = 10
    tolerance: float = math.inf
    always_best: bool = False


@dataclass(frozen=True)
class Descent:
    """How coefficients are descended.

    optimiser: made for the raw numbers. steps: optimiser steps. clip: largest norm of the gradient. schedule: factor
    of the learning rate by step (from 0). penalty: added to the loss, a function of the coefficients. values: the
    coefficients that raw numbers stand for. frozen: (experts, blocks), where nothing is learnt.
    """

    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer]
    steps: int
    clip: float | None = None
    schedule: Callable[[int], float] | None = None
    penalty: Callable[[Tensor], Tensor] | None = None
    values: Callable[[Tensor], Tensor] = lambda raw: raw
    frozen: Tensor | None = None


def learn(
    composition: Composition, start: Tensor, losses: Losses, descent: Descent, guard: Guard, *, job: Job | None = None
) -> tuple[Tensor, list[dict[str, Any]], list[str]]:
    """Descend from raw numbers `start` (experts, blocks); return the raw numbers, the trace and notices.

    The same arguments give the same numbers; with a job, measurements are journalled and a killed run goes on from the
    last one. Stops, with a notice, where the guard says so, where the loss has risen far above the first one (the best
    coefficients are returned), and where the objective is flat: over three measurements and 20 steps at the least no
    coefficient moved, or the loss stayed within a millionth. Raises WorkError where a loss is NaN or infinite.
    """
    raw = start.detach().clone().requires_grad_(True)
    optimiser = descent.optimiser([raw])
    rates = [group["lr"] for group in optimiser.param_groups]
    first = _measured(guard, descent.values(raw.detach()), 0, None)
    trace = [first]
    best, kept = first["score"], raw.detach().clone()
    notices: list[str] = []
    sums: list[float] = []
    opening: float | None = None  # the loss of the first step
    flatness = _Flatness(guard.every, descent.values(kept))
    for step in range(1, descent.steps + 1):
        due = step % guard.every == 0 or step == descent.steps
        key = f"step {min(-(-step // guard.every) * guard.every, descent.steps)}"
        if job is not None and key in job.done:
            if not due:
                continue
            entry, opening = job.done[key]["entry"], job.done[key].get("opening", opening)
            _restore(raw, optimiser, job.done[key]["optimiser"])
        else:
            if job is not None:
                job.check()
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * (descent.schedule(step - 1) if descent.schedule else 1.0)
            sums.append(_step(composition, raw, optimiser, losses, descent, step))
            opening = sums[0] if step == 1 else opening
            if not due:
                continue
            entry = _measured(guard, descent.values(raw.detach()), step, float(np.mean(sums)))
            sums = []
            if job is not None:
                job.record(key, entry=entry, optimiser=_numbers(raw, optimiser), opening=opening)
        trace.append(entry)
        if entry["score"] >= best:
            best, kept = entry["score"], raw.detach().clone()
        elif entry["score"] < best - guard.tolerance:
            notices.append(
                f"the score fell from {best:.4g} to {entry['score']:.4g} by step {step}; stopped there, the "
                "coefficients with the best score are returned"
            )
            return kept, trace, notices
        if opening is not None and entry["loss"] - opening > _DIVERGED * max(abs(opening), 1.0):
            notices.append(
                f"the loss rose from {opening:.4g} to {entry['loss']:.4g} by step {step}: it diverges; stopped there, "
                "the coefficients with the best score are returned; lower the learning rate"
            )
            return kept, trace, notices
        with torch.no_grad():
            reason = flatness.reason(entry["loss"], descent.values(raw.detach()))
        if reason is not None and step < descent.steps:
            notices.append(f"{reason}: the objective is flat; stopped at step {step} of {descent.steps}")
            break
    return (kept if guard.always_best else raw.detach().clone()), trace, notices


class _Flatness:
    """Sees from measurement to measurement whether anything still changes."""

    def __init__(self, every: int, values: Tensor) -> None:
        self.window = max(_FLAT_MEASUREMENTS, -(-_FLAT_STEPS // every))
        self.every, self.values, self.still = every, values.clone(), 0
        self.losses: list[float] = []

    def reason(self, loss: float, values: Tensor) -> str | None:
        """Return what is flat over the last measurements, None where nothing is."""
        self.still = self.still + 1 if torch.equal(values, self.values) else 0
        self.values = values.clone()
        self.losses = [*self.losses, loss][-self.window :]
        over = f"over the last {self.window * self.every} steps"
        if self.still >= self.window:
            return f"no coefficient moved {over}"
        size = max(map(abs, self.losses))
        if len(self.losses) == self.window and max(self.losses) - min(self.losses) <= _FLAT * size:
            return f"the loss stayed at {loss:.6g} {over}"
        return None


def _step(
    composition: Composition,
    raw: Tensor,
    optimiser: torch.optim.Optimizer,
    losses: Losses,
    descent: Descent,
    step: int,
) -> float:
    """Take one step; return the loss."""
    values = descent.values(raw)
    with torch.no_grad():
        composed = composition.parameters(values)
    leaves = {name: value.requires_grad_(True) for name, value in composed.items()}
    total = 0.0
    for task, part in losses(step, leaves):
        total += _finite(part, step, f"task {task!r}")
        part.backward()  # type: ignore[no-untyped-call]
    slopes = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    optimiser.zero_grad()
    objective = (values * composition.gradient(slopes).to(values.dtype)).sum()  # its gradient is the chain rule
    if descent.penalty is not None:
        penalty = descent.penalty(values)
        total += _finite(penalty, step, "the penalty")
        objective = objective + penalty
    objective.backward()  # type: ignore[no-untyped-call]
    if descent.frozen is not None and raw.grad is not None:
        raw.grad[descent.frozen] = 0
    if descent.clip is not None:
        torch.nn.utils.clip_grad_norm_([raw], descent.clip)
    held = raw.detach().clone()
    optimiser.step()
    if descent.frozen is not None:
        with torch.no_grad():
            raw.copy_(torch.where(descent.frozen, held, raw))
    return total


def _finite(loss: Tensor, step: int, whose: str) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise WorkError(
            f"{whose}: the loss is {value} in step {step}; check the examples and the models, or lower the learning "
            "rate"
        )
    return value


def _measured(guard: Guard, values: Tensor, step: int, loss: float | None) -> dict[str, Any]:
    with torch.no_grad():
        entry = {"step": step, "loss": loss, **guard.entry(values)}
    if not math.isfinite(entry["score"]):
        raise WorkError(f"the score is {entry['score']} at step {step}; check the examples and the models")
    return entry


def _numbers(raw: Tensor, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    held = optimiser.state[raw]
    return {
        "raw": raw.tolist(),
        "step": float(held["step"]),
        "mean": held["exp_avg"].tolist(),
        "square": held["exp_avg_sq"].tolist(),
    }


def _restore(raw: Tensor, optimiser: torch.optim.Optimizer, numbers: Mapping[str, Any]) -> None:
    with torch.no_grad():
        raw.copy_(torch.tensor(numbers["raw"], dtype=raw.dtype))
    optimiser.state[raw] = {
        "step": torch.tensor(numbers["step"]),
        "exp_avg": torch.tensor(numbers["mean"], dtype=raw.dtype),
        "exp_avg_sq": torch.tensor(numbers["square"], dtype=raw.dtype),
    }


def entropy(logits: Tensor) -> Tensor:
    """Return the mean Shannon entropy, in nats, of the outcomes' probabilities.

    >>> round(float(entropy(torch.zeros(3, 2))), 4)
    0.6931
    """
    chances = logits.log_softmax(dim=-1).clamp(min=-1e4)  # the gradient of p log p by way of p is NaN at 0
    return -(chances.exp() * chances).sum(dim=-1).mean()


def sound(logits: Tensor) -> bool:
    """Return whether logits are a distribution each: no NaN, and something is possible.

    >>> sound(torch.tensor([[0.0, float("-inf")]])), sound(torch.tensor([[0.0, float("nan")]]))
    (True, False)
    """
    return bool(torch.isfinite(logits.softmax(dim=-1)).all())


def choice_problems(models: Mapping[str, Predictor], examples: Mapping[str, Sequence[Any]], batch: int) -> list[str]:
    """Return what is wrong where the outcomes of a model are the documents of a batch and there is but one."""
    found = []
    for task in (task for task, model in models.items() if getattr(model, "in_batch", False)):
        if len(examples.get(task, ())) == 1:
            found.append(f"task {task!r} has one example; its outcomes are the documents of a batch: give 2 or more")
        if batch == 1:
            found.append(f"task {task!r}: batches of 1; its outcomes are the documents of a batch: use 2 or more")
    return found


def own_tensors(model: Predictor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of the tensors that a model uses."""
    own = set(model.names.values())
    return {name: value for name, value in parameters.items() if name in own}


def shuffled_batch(examples: Sequence[Any], size: int, draw: int, *names: str, seed: int = 0) -> list[Any]:
    """Return batch `draw` (from 0) of a shuffled pass over examples; passes follow each other, each in its own order.

    >>> [sorted(shuffled_batch("abcd", 2, 0) + shuffled_batch("abcd", 2, 1)), len(shuffled_batch("ab", 5, 3))]
    [['a', 'b', 'c', 'd'], 2]

    All batches have `size` examples (all, where there are fewer); what is left over at the end of a pass is not used.
    """
    size = min(size, len(examples))
    passes, place = divmod(draw, len(examples) // size)
    random = np.random.Generator(np.random.Philox(stream_key(seed, "learning", *names, str(passes))))
    return [examples[i] for i in random.permutation(len(examples))[place * size : (place + 1) * size].tolist()]
