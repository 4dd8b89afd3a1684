"""aTLAS: a learnt coefficient per task vector and parameter block, from labelled examples.

    theta^(j) = theta_0^(j) + sum_i lambda_i^(j) tau_i^(j)        lambda starts at 0, at the base itself

The losses of all tasks are added. A task to be forgotten counts negatively: its loss is to rise while those of the
others, the control, fall. With groups, each block's entries are split at random into groups with a coefficient each.

Source: Zhang et al. 2024, Knowledge Composition using Task Vectors with Learned Anisotropic Scaling (NeurIPS 2024); the
settings are those of fredzzhang/atlas, in single precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from consilience.core.randomness import stream_key
from consilience.errors import Problems, RequestError, WorkError
from consilience.tuning.composition import Composition, State, select_tensors
from consilience.tuning.learning import (
    Descent,
    Guard,
    Learned,
    choice_problems,
    learn,
    own_tensors,
    shuffled_batch,
    sound,
)
from consilience.tuning.shelf import scratch

if TYPE_CHECKING:
    from consilience.core.jobs import Job
    from consilience.models.model import Predictor

__all__ = ["atlas"]

_MEASURED = 256  # examples at a time when accuracy is measured
_BROKEN = -2.0  # the score where the control tasks have lost too much
_CONTROL = 0.95  # of the base's control accuracy must stay


def atlas(
    base: State,
    experts: Mapping[str, State],
    models: Mapping[str, Predictor],
    examples: Mapping[str, Sequence[Any]],
    *,
    validation: Mapping[str, Sequence[Any]] | None = None,
    forget: Sequence[str] = (),
    granularity: Literal["model", "tensor"] = "tensor",
    groups: int | None = None,
    matrices: bool = False,
    tensors: Sequence[str] | None = None,
    budget: int | None = None,
    choice: Literal["gradient", "random"] = "gradient",
    steps: int = 300,
    batch: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    clip: float | None = 1.0,
    penalty: Literal[1, 2] | None = None,
    every: int = 20,
    seed: int = 0,
    job: Job | None = None,
) -> Learned:
    """Learn a coefficient per expert and block by AdamW on the tasks' losses.

    base, experts: states by tensor name. models, examples: by task, a predictor and labelled training examples; the
    `batch` is shared equally by the tasks. Tasks need not have an expert (few-shot transfer).

    validation: other labelled examples of each task; measured every `every` steps. Then the coefficients are returned
    whose mean accuracy is best, each task's divided by that of the expert of its name where there is one; the base
    itself, with a notice, where nothing beats it. Without validation the last coefficients are returned. Measure the
    result on a third split. With tasks to `forget`, their validation accuracy is to be low: the lowest counts while the
    others keep 95 % of the base's accuracy, and the work stops where they do not.

    granularity: "tensor", or "model" for one coefficient per expert. groups: of each tensor's entries. matrices: only
    tensors of two dimensions take part, the others stay at the base. budget: how many task vectors every block may
    use, chosen before training by the largest gradient at the base, or at random. penalty: half the mean over blocks
    of the p-norm over task vectors is added to the loss.

    Raises RequestError listing what is wrong with the request, WorkError for a loss that is NaN or infinite.
    """
    _check(models, examples, validation, forget, experts, budget, steps, batch, every)
    chosen = tuple(tensors) if tensors is not None else select_tensors(base, matrices=matrices)
    composition = Composition(
        base, experts, granularity=granularity, tensors=chosen, groups=groups, seed=seed, scratch=scratch(job)
    )
    share = max(batch // len(models), 1)
    signs = {task: -1.0 if task in forget else 1.0 for task in models}

    def losses(step: int, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for task, model in models.items():
            (given,) = model.batches(shuffled_batch(examples[task], share, step - 1, task, seed=seed), share)
            yield task, signs[task] * model.loss(given, own_tensors(model, parameters))

    frozen = None
    if budget is not None:
        frozen = ~_allowed(composition, models, examples, signs, budget, choice, seed)

    def norm(values: Tensor) -> Tensor:
        assert penalty is not None
        found: Tensor = 0.5 * torch.linalg.vector_norm(values, ord=penalty, dim=0).mean()
        return found

    descent = Descent(
        lambda raw: torch.optim.AdamW(raw, lr=learning_rate, weight_decay=weight_decay),
        steps,
        clip=clip,
        penalty=None if penalty is None else norm,
        frozen=frozen,
    )
    scores = _Scores(composition, experts, models, validation or examples, forget)
    guard = Guard(scores.entry, every, 2.0, always_best=validation is not None)
    start = torch.zeros(composition.shape)
    raw, trace, notices = learn(composition, start, losses, descent, guard, job=job)
    if validation is not None and not raw.any():
        notices.append("no coefficients had a better validation score than the base; the base is returned")
    if forget and scores.first_control is not None and trace[-1]["score"] == _BROKEN:
        notices = [
            "the control tasks fell below 95 % of the base's accuracy; the best coefficients before are returned"
        ]
    facts = {"steps": trace[-1]["step"], "learnt": raw.numel() if frozen is None else int((~frozen).sum())}
    return Learned("atlas", composition, raw, tuple(trace), facts, tuple(notices))


def _check(
    models: Mapping[str, Predictor],
    examples: Mapping[str, Sequence[Any]],
    validation: Mapping[str, Sequence[Any]] | None,
    forget: Sequence[str],
    experts: Mapping[str, State],
    budget: int | None,
    steps: int,
    batch: int,
    every: int,
) -> None:
    problems = Problems()
    if not models or set(models) != set(examples):
        problems.add(f"tasks {sorted(models)} with examples of {sorted(examples)}; each task needs both")
    if validation is not None and set(validation) != set(models):
        problems.add(f"validation has the tasks {sorted(validation)}, not {sorted(models)}")
    for what, held in (("examples", examples), ("validation examples", validation or {})):
        problems.extend(f"task {task!r} has no {what}" for task, found in held.items() if not len(found))
    problems.extend(choice_problems(models, examples, max(batch // max(len(models), 1), 1)))
    problems.extend(f"forget: {task!r} is no task" for task in forget if task not in models)
    if forget and set(forget) >= set(models):
        problems.add("forget: all tasks are to be forgotten; at least one is needed as control")
    if forget and validation is None:
        problems.add("forget: validation examples are needed to see when the other tasks lose too much")
    if budget is not None and not 1 <= budget <= len(experts):
        problems.add(f"budget {budget}: from 1 to the number of experts, {len(experts)}")
    if min(steps, batch, every) < 1:
        problems.add(f"steps {steps}, batch {batch}, every {every}: all 1 or more")
    problems.raise_if_any(RequestError, "atlas")


def _allowed(
    composition: Composition,
    models: Mapping[str, Predictor],
    examples: Mapping[str, Sequence[Any]],
    signs: Mapping[str, float],
    budget: int,
    choice: Literal["gradient", "random"],
    seed: int,
) -> Tensor:
    """Return which coefficients are learnt, bool (experts, blocks): `budget` experts of every block."""
    if choice == "random":
        generator = torch.Generator().manual_seed(stream_key(seed, "atlas budget") >> 1)
        weight = torch.rand(composition.shape, generator=generator, dtype=torch.float64)
    else:
        with torch.no_grad():
            at = composition.parameters(torch.zeros(composition.shape))
        leaves = {name: value.requires_grad_(True) for name, value in at.items()}
        for task, model in models.items():
            own = own_tensors(model, leaves)
            for start in range(0, len(examples[task]), _MEASURED):
                part = examples[task][start : start + _MEASURED]
                (given,) = model.batches(part, len(part))
                loss = model.loss(given, own) * (signs[task] * len(part) / len(examples[task]))
                loss.backward()  # type: ignore[no-untyped-call]
        slopes = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        weight = composition.gradient(slopes).abs()
    ranks = weight.argsort(dim=0, descending=True, stable=True).argsort(dim=0, stable=True)
    return ranks < budget


def _answers(model: Predictor, part: Sequence[Any]) -> Sequence[int]:
    """Return the right outcome of every example: its label, or its own place where the batch is the choice."""
    return range(len(part)) if getattr(model, "in_batch", False) else [int(label) for _, label in part]


class _Scores:
    """Accuracies of composed models on labelled examples, and the score that selects coefficients."""

    def __init__(
        self,
        composition: Composition,
        experts: Mapping[str, State],
        models: Mapping[str, Predictor],
        examples: Mapping[str, Sequence[Any]],
        forget: Sequence[str],
    ) -> None:
        self.composition, self.models, self.forget = composition, models, tuple(forget)
        self.examples = examples
        self.first_control: float | None = None
        self.reference = {}
        for task, model in models.items():
            best = 1.0
            if task in experts and task not in forget:
                held = {name: experts[task][name].to(torch.float32) for name in model.names.values()}
                best = self._accuracy(task, held)
            self.reference[task] = best or 1.0

    def _accuracy(self, task: str, parameters: Mapping[str, Tensor]) -> float:
        model, found = self.models[task], self.examples[task]
        own, right = own_tensors(model, parameters), 0
        with torch.no_grad():
            for start in range(0, len(found), _MEASURED):
                part = found[start : start + _MEASURED]
                (given,) = model.batches(part, len(part))
                logits = model.logits(given, own)
                if not sound(logits):
                    raise WorkError(
                        f"task {task!r}: the loss is nan or infinite, as predictions are; check its examples"
                    )
                predicted = logits.argmax(dim=-1)
                right += sum(int(a) == b for a, b in zip(predicted, _answers(model, part), strict=True))
        return right / len(found)

    def entry(self, values: Tensor) -> dict[str, Any]:
        """Return accuracies by task and the score."""
        parameters = self.composition.parameters(values)
        accuracy = {task: self._accuracy(task, parameters) for task in self.models}
        if not self.forget:
            score = sum(accuracy[task] / self.reference[task] for task in accuracy) / len(accuracy)
            return {"score": score, "accuracy": accuracy}
        control = [accuracy[task] for task in accuracy if task not in self.forget]
        kept = sum(control) / len(control)
        if self.first_control is None:
            self.first_control = kept
        score = 1 - sum(accuracy[task] for task in self.forget) / len(self.forget)
        return {"score": score if kept >= _CONTROL * self.first_control else _BROKEN, "accuracy": accuracy}
