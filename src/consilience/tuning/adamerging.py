"""AdaMerging: coefficients of task arithmetic that make the merged model sure of its predictions on unlabelled inputs.

    minimise over c   sum over tasks of mean H(softmax(logits)),   theta = theta_0 + sum_i clamp(c_i, 0, 1) tau_i

One coefficient per expert (task-wise) or per expert and tensor (layer-wise); with vectors="ties" task vectors are
trimmed and rid of conflicts first (the ++ variants). A model can become sure and wrong: agreement with each expert on
its own inputs, which needs no labels either, watches over the descent.

Source: Yang et al. 2024, AdaMerging: Adaptive Model Merging for Multi-Task Learning (arXiv 2310.02575); clamp, two
batches of 16 per task and step, and Adam's settings are those of the authors' code. The guard is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from consilience.errors import Problems, RequestError
from consilience.tuning.composition import Composition, Granularity, State, Vectors
from consilience.tuning.learning import (
    Descent,
    Guard,
    Learned,
    choice_problems,
    entropy,
    learn,
    own_tensors,
    shuffled_batch,
    sound,
)
from consilience.tuning.shelf import scratch

if TYPE_CHECKING:
    from consilience.core.jobs import Job
    from consilience.models.model import Predictor

__all__ = ["adamerging"]

_MEASURED = 256  # inputs at a time when agreement is measured


def adamerging(
    base: State,
    experts: Mapping[str, State],
    models: Mapping[str, Predictor],
    examples: Mapping[str, Sequence[Any]],
    *,
    granularity: Granularity = "tensor",
    vectors: Vectors = "difference",
    density: float = 0.2,
    start: float = 0.3,
    clamp: bool = True,
    steps: int = 500,
    learning_rate: float = 1e-3,
    batch: int = 16,
    batches: int = 2,
    every: int = 10,
    tolerance: float | None = 0.02,
    monitored: int = 200,
    seed: int = 0,
    tensors: Sequence[str] | None = None,
    job: Job | None = None,
) -> Learned:
    """Learn coefficients without labels.

    base, experts: states by tensor name. models, examples: a predictor and inputs for each task; a task has the name
    of its expert, and not every expert needs one. Labels in examples are never looked at.

    granularity: one coefficient per expert ("model"), per layer, or per tensor (what the source calls layer-wise).
    vectors, density: see `Composition`. start: of all coefficients. clamp: keep them in [0, 1] as the authors' code
    does: one that has left the range has no gradient and never comes back. A step takes `batches` batches of at most
    `batch` inputs of every task. tolerance: largest drop of the mean agreement with the experts below its best, on at
    most `monitored` inputs per task, measured every `every` steps; None: no guard.

    Facts of the result: entropy and agreement (mean over tasks) at the start and of what is returned, agreement by
    task, and saturated: how many coefficients the clamp holds at 0 or 1. Raises RequestError for a task without inputs
    or with a single outcome, WorkError for NaN.
    """
    problems = Problems()
    if not models or set(models) != set(examples) or set(models) - set(experts):
        problems.add(
            f"tasks {sorted(models)} with examples of {sorted(examples)} and experts {sorted(experts)}; each task "
            "needs all three, under one name"
        )
    problems.extend(f"task {name!r} has no inputs; leave it out" for name, found in examples.items() if not len(found))
    problems.extend(choice_problems(models, examples, batch))
    if min(steps, batch, batches, every, monitored) < 1 or not learning_rate > 0:
        problems.add(
            f"steps {steps}, batches {batches} of {batch}, every {every}, monitored {monitored}, learning rate "
            f"{learning_rate}: all above 0"
        )
    problems.raise_if_any(RequestError, "adamerging")
    composition = Composition(
        base, experts, granularity=granularity, vectors=vectors, density=density, tensors=tensors, scratch=scratch(job)
    )
    agreement = _Agreement(experts, models, examples, monitored)

    def losses(step: int, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for task, model in models.items():
            own = own_tensors(model, parameters)
            for number in range(batches):
                draw = (step - 1) * batches + number
                (given,) = model.batches(shuffled_batch(examples[task], batch, draw, task, seed=seed), batch)
                yield task, entropy(model.logits(given, own))

    def values(raw: Tensor) -> Tensor:
        return raw.clamp(0, 1) if clamp else raw

    descent = Descent(lambda raw: torch.optim.Adam(raw, lr=learning_rate), steps, values=values)
    guard = Guard(
        lambda found: agreement.entry(composition.parameters(found)),
        every,
        float("inf") if tolerance is None else tolerance,
    )
    raw, trace, notices = learn(
        composition, torch.full(composition.shape, start, dtype=torch.float32), losses, descent, guard, job=job
    )
    with torch.no_grad():
        final = agreement.entry(composition.parameters(values(raw)))
    saturated = int(((raw <= 0) | (raw >= 1)).sum()) if clamp else 0
    if saturated:
        notices.append(f"{saturated} of {raw.numel()} coefficients are held at 0 or 1 by the clamp and learn no more")
    facts = {"start": _plain(trace[0]), "end": final, "steps": trace[-1]["step"], "saturated": saturated}
    name = "adamerging" if vectors == "difference" else "adamerging++"
    return Learned(name, composition, values(raw), tuple(trace), facts, tuple(notices))


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("step", "loss")}


def _working(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)


class _Agreement:
    """How often the merged model and an expert predict the same on the expert's own inputs, and the entropy there."""

    def __init__(
        self,
        experts: Mapping[str, State],
        models: Mapping[str, Predictor],
        examples: Mapping[str, Sequence[Any]],
        limit: int,
    ) -> None:
        self.models = models
        self.batches = {
            task: list(model.batches(list(examples[task][:limit]), _MEASURED)) for task, model in models.items()
        }
        self.expected: dict[str, list[Tensor]] = {}
        problems = Problems()
        for task, model in models.items():
            own = {name: _working(experts[task][name]) for name in model.names.values()}
            with torch.no_grad():
                logits = [model.logits(given, own) for given in self.batches[task]]
            if any(found.shape[-1] < 2 for found in logits):
                problems.add(f"task {task!r} has a single outcome: its entropy is always 0; leave it out")
            elif not all(sound(found) for found in logits):
                problems.add(f"task {task!r}: the expert's predictions are NaN or infinite; leave it out")
            self.expected[task] = [found.argmax(dim=-1) for found in logits]
        problems.raise_if_any(RequestError, "adamerging")

    def entry(self, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the mean agreement as "score", that of every task, and the sum of the tasks' mean entropies."""
        by_task, total = {}, 0.0
        for task, model in self.models.items():
            own = own_tensors(model, parameters)
            same = count = 0
            doubt = 0.0
            for given, expected in zip(self.batches[task], self.expected[task], strict=True):
                logits = model.logits(given, own)
                same += int((logits.argmax(dim=-1) == expected).sum())
                doubt += float(entropy(logits)) * expected.numel()
                count += expected.numel()
            by_task[task] = same / count
            total += doubt / count
        return {"score": sum(by_task.values()) / len(by_task), "agreement": by_task, "entropy": total}
