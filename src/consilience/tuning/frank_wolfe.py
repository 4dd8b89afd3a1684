"""Frank-Wolfe merging: pick from a pool of models, by the gradient of a loss, those that help, and merge them in.

    hard:  s = argmin_i <grad L(theta), theta_i>      theta <- theta + step_t c (s - theta)      step_t = 2/(t+2) step
    soft:  every task picks its own s_k               theta <- theta + sum_k lambda_k (s_k - theta), lambda learnt

The score is the cosine of gradient and weights, as the authors' code has it; the theory's inner product is an option.
What comes out is a linear combination of the pool's task vectors, so it ends as a recipe.

Source: FW-Merging, ICCV 2025 (arXiv 2503.12649). The merge of a picked model is task arithmetic (not TIES).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilience.errors import Problems, RequestError, WorkError
from consilience.tuning.frank_wolfe_pool import Pool, Score, State
from consilience.tuning.learning import choice_problems, entropy

if TYPE_CHECKING:
    from consilience.core.jobs import Job
    from consilience.models.model import Predictor

__all__ = ["INITIAL", "FrankWolfe", "Granularity", "Loss", "Variant", "frank_wolfe"]

Variant = Literal["hard", "soft"]
Granularity = Literal["task", "layer"]
Loss = Literal["cross_entropy", "entropy"]

INITIAL = "initial"
_FLAT = 1e-7  # a loss that changes by less, relatively, two times in a row is flat
_STILL = 20  # learning steps without a change end the learning of an iteration
_DIVERGED = 3.0  # times the first loss

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FrankWolfe:
    """The result: `values` (models, tensors) are coefficients of task vectors, `state` the merged float tensors.

    `trace` has one entry per iteration: step, picks (names; by tensor for layer granularity), scores, and the loss
    after it. `notices` say why the work stopped early.
    """

    models: tuple[str, ...]
    tensors: tuple[str, ...]
    values: Array = field(repr=False)
    state: dict[str, Tensor] = field(repr=False)
    start_loss: float
    trace: tuple[Mapping[str, Any], ...]
    notices: tuple[str, ...] = ()

    def picks(self) -> list[str]:
        """Return the names that were picked, in order; for layer granularity once per tensor."""
        found: list[str] = []
        for entry in self.trace:
            for pick in entry["picks"]:
                found += [pick] if isinstance(pick, str) else list(pick.values())
        return found

    def recipe(self, *, base: str, experts: Mapping[str, str]) -> dict[str, Any]:
        """Return the merge as a recipe in plain data; models that got no weight are left out.

        One weight per model where all its tensors have the same, else `coefficients` by tensor. experts: name ->
        reference of (at least) the models with weight.
        """
        used = [i for i in range(len(self.models)) if self.values[i].any()] or [0]
        names = [self.models[i] for i in used]
        if missing := [name for name in names if name not in experts]:
            raise RequestError(f"experts: no reference is given for {', '.join(missing)}")
        content: dict[str, Any] = {"version": 1, "method": "task_arithmetic", "base": base}
        content["experts"] = {name: experts[name] for name in names}
        kept = self.values[used]
        if (kept == kept[:, :1]).all():
            content["parameters"] = {"weight": dict(zip(names, kept[:, 0].tolist(), strict=True))}
        else:
            content["coefficients"] = [
                {"tensors": tensor, **dict(zip(names, kept[:, place].tolist(), strict=True))}
                for place, tensor in enumerate(self.tensors)
            ]
        return content


def frank_wolfe(
    base: State,
    pool: Mapping[str, State | Callable[[], State]],
    models: Mapping[str, Predictor],
    examples: Mapping[str, Sequence[Any]],
    *,
    variant: Variant = "hard",
    granularity: Granularity = "layer",
    iterations: int = 10,
    step_size: float = 0.1,
    scale: float = 0.3,
    score: Score = "cosine",
    loss: Loss = "cross_entropy",
    batch: int = 100,
    learning_steps: int = 500,
    learning_rate: float = 1e-3,
    learning_batch: int = 16,
    learning_loss: Loss = "entropy",
    later_start: float = 1e-8,
    project: bool = False,
    job: Job | None = None,
) -> FrankWolfe:
    """Merge a few useful models of a pool, chosen by the gradient of the mean loss of some tasks.

    >>> from consilience.models.classifier import Head
    >>> from consilience.models.image import ImageClassifier, ImageEncoder
    >>> from consilience.models.image_network import PerceptronConfig
    >>> encoder = ImageEncoder(PerceptronConfig(image_size=2, hidden_sizes=(3,)))
    >>> model = ImageClassifier(encoder, Head(torch.eye(3)[:2], torch.zeros(2), ("dark", "bright")))
    >>> base = encoder.state()
    >>> pool = {"large": {n: 2 * v for n, v in base.items()}, "small": {n: v / 2 for n, v in base.items()}}
    >>> images = [(np.zeros((2, 2), np.float32), 0), (np.ones((2, 2), np.float32), 1)]
    >>> found = frank_wolfe(base, pool, {"shade": model}, {"shade": images}, granularity="task", iterations=2)
    >>> recipe = found.recipe(base="models/base", experts={"large": "models/large", "small": "models/small"})
    >>> [len(entry["picks"]) for entry in found.trace], list(recipe["parameters"]["weight"])
    ([1, 1], ['large', 'small'])

    base: float tensors by name. pool: name -> state, or a function that reads one (then one model is in memory at a
    time; soft also holds one pick per task). models, examples: by task, a predictor and about 100 examples.

    hard starts at task arithmetic of the whole pool with `scale`, which joins the candidates as "initial", and takes
    one candidate per iteration. soft starts at the base; every task takes its best candidate, and coefficients per
    tensor (start `scale`, later `later_start`) are learnt for `learning_steps` Adam steps; 0 steps: `scale` x step.
    granularity: one candidate for the whole model ("task") or one per tensor ("layer"). score: "cosine" (with the
    weights), "inner_product" (with the change from the base). project: keep the learnt coefficients of a tensor at 0 or
    more and their sum at most 1. loss: of the selection; "entropy" needs no labels. job: its journal keeps iterations.

    Of equal scores the first in the pool's order wins. Raises RequestError for models that do not fit the base (before
    anything is computed), WorkError for a loss that is NaN or infinite. Stops, with a notice, when the loss is flat or
    three times what it was at the start.
    """
    problems = Problems()
    if not models or set(models) != set(examples):
        problems.add(f"tasks {sorted(models)} with examples of {sorted(examples)}; each task needs both")
    problems.extend(f"task {name!r} has no examples" for name, found in examples.items() if not len(found))
    smallest = min(batch, learning_batch) if variant == "soft" and learning_steps else batch
    problems.extend(choice_problems(models, examples, smallest))
    if iterations < 1 or learning_steps < 0 or batch < 1 or learning_batch < 1:
        problems.add(
            f"iterations {iterations}, learning steps {learning_steps}, batches {batch} and {learning_batch}: "
            "one or more, steps 0 or more"
        )
    if INITIAL in pool:
        problems.add(f"the name {INITIAL!r} is taken by the starting point; rename that model")
    problems.raise_if_any(RequestError, "frank-wolfe")
    run = _Run(Pool(base, pool, only=_shared(models)), models, examples, batch)
    count = len(run.pool.names)
    start = np.full((count, len(run.pool.tensors)), scale if variant == "hard" else 0.0)
    values, trace, notices = start.copy(), list[Mapping[str, Any]](), list[str]()
    theta = run.pool.combine(values)
    first = previous = run.loss(theta, loss)
    best, lowest = values, first
    initial = theta if variant == "hard" else None
    streams = {task: _cycle(model, examples[task], learning_batch) for task, model in models.items()}
    flat = 0
    for t in range(iterations):
        step = 2 / (t + 2) * step_size
        key = f"iteration {t}"
        if job is not None and key in job.done:
            entry, values = job.done[key]["entry"], np.array(job.done[key]["values"], np.float64)
            for stream in streams.values():
                for _ in range(job.done[key].get("learned", learning_steps if variant == "soft" else 0)):
                    next(stream)
            theta = run.pool.combine(values)
        else:
            learned = 0
            if job is not None:
                job.check()
            if variant == "hard":
                scores = run.pool.scores([run.gradient(theta, loss)], initial, score)
                choice = _choose(scores[0], granularity, np.zeros_like(scores[0], np.bool_))[None]
                moves = np.full((1, values.shape[1]), step * scale)
            else:
                gradients = [run.gradient(theta, loss, [task]) for task in models]
                scores = run.pool.scores(gradients, None, score)
                choice = _choose_all(scores, granularity)
                if learning_steps:
                    guess = scale if t == 0 else later_start
                    settings = (learning_steps, learning_rate, learning_loss, project)
                    moves, learned = run.learn(theta, run.pool.picked(choice), guess, streams, *settings)
                else:
                    moves = np.full(choice.shape, scale * (1.0 if t == 0 else step))
            values = _moved(values, start, choice, moves)
            theta = run.pool.combine(values)
            after = run.loss(theta, loss)
            entry = _entry(t, step, run.pool, choice, scores, granularity, after)
            if job is not None:
                job.record(key, entry=entry, values=values.tolist(), learned=learned)
        trace.append(entry)
        after = entry["loss"]
        if after < lowest:
            best, lowest = values, after
        if after > _DIVERGED * max(first, 1e-12):
            notices.append(f"the loss rose from {first:.4g} to {after:.4g} by iteration {t}; the best one is kept")
            values, theta = best, run.pool.combine(best)
            break
        flat = flat + 1 if abs(after - previous) <= _FLAT * abs(previous) else 0
        previous = after
        if flat == 2 and t + 1 < iterations:
            notices.append(f"the loss is flat at {after:.6g} since iteration {t - 1}; stopped")
            break
    return FrankWolfe(run.pool.names, run.pool.tensors, values, theta, first, tuple(trace), tuple(notices))


def _shared(models: Mapping[str, Predictor]) -> list[str]:
    """Return the tensors that any of the predictors uses: the others have no gradient."""
    return list(dict.fromkeys(name for model in models.values() for name in model.names.values()))


def _choose(scores: Array, granularity: Granularity, taken: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the index of the best candidate for every tensor, -1 where all are taken; scores (models, tensors)."""
    if granularity == "task":
        total = np.where(taken[:, 0], np.inf, scores.sum(axis=1))
        return np.full(scores.shape[1], int(total.argmin()) if np.isfinite(total).any() else -1)
    open_scores = np.where(taken, np.inf, scores)
    return np.where(np.isfinite(open_scores).any(axis=0), open_scores.argmin(axis=0), -1)


def _choose_all(scores: Array, granularity: Granularity) -> NDArray[np.int64]:
    """Return the picks of every task in turn (picks, tensors): a candidate is taken once."""
    taken = np.zeros(scores.shape[1:], np.bool_)
    picks = []
    for own in scores:
        choice = _choose(own, granularity, taken)
        if (choice < 0).all():
            break
        taken[choice, np.arange(len(choice))] = True
        picks.append(choice)
    return np.stack(picks)


def _moved(values: Array, start: Array, choice: NDArray[np.int64], moves: Array) -> Array:
    """Return the coefficients after theta + sum_k moves_k (candidate_k - theta)."""
    new = values * (1 - moves.sum(axis=0))
    count, places = len(values), np.arange(values.shape[1])
    for pick, move in zip(choice, moves, strict=True):
        there = pick == count  # the starting point
        new[:, there] += start[:, there] * move[there]
        new[pick[~there], places[~there]] += move[~there]
    return np.asarray(new, np.float64)


def _entry(
    t: int, step: float, pool: Pool, choice: NDArray[np.int64], scores: Array, granularity: Granularity, loss: float
) -> dict[str, Any]:
    names = (*pool.names, INITIAL)
    picks: list[Any] = []
    margins = []
    for own, pick in zip(scores, choice, strict=False):
        table = own.sum(axis=1, keepdims=True) if granularity == "task" else own
        if len(table) > 1:
            ordered = np.sort(table, axis=0)
            margins.append(float((ordered[1] - ordered[0]).min()))
        by_tensor = {tensor: names[i] for tensor, i in zip(pool.tensors, pick.tolist(), strict=True) if i >= 0}
        picks.append(names[pick[0]] if granularity == "task" else by_tensor)
    told = [dict(zip(names, own.sum(axis=1).tolist(), strict=False)) for own in scores]
    return {
        "iteration": t,
        "step": step,
        "picks": picks,
        "scores": told,
        "margin": min(margins, default=None),
        "loss": loss,
    }


def _cycle(model: Predictor, examples: Sequence[Any], size: int) -> Iterator[Any]:
    """Yield batches of the examples in order, wrapping round, for ever."""
    place, count = 0, len(examples)
    while True:
        (found,) = model.batches([examples[(place + i) % count] for i in range(min(size, count))], size)
        yield found
        place = (place + min(size, count)) % count


def _objective(model: Predictor, batch: Any, parameters: State, loss: Loss) -> Tensor:
    if loss == "cross_entropy":
        return model.loss(batch, parameters)
    return entropy(model.logits(batch, parameters))


class _Run:
    """Losses, gradients and learnt steps on fixed examples."""

    def __init__(
        self, pool: Pool, models: Mapping[str, Predictor], examples: Mapping[str, Sequence[Any]], batch: int
    ) -> None:
        self.pool, self.models = pool, models
        self.batches = {task: list(model.batches(examples[task], batch)) for task, model in models.items()}
        self.sizes = {
            task: [min(batch, len(examples[task]) - i * batch) for i in range(len(self.batches[task]))]
            for task in models
        }
        self.used = {task: set(model.names.values()) for task, model in models.items()}

    def _given(self, task: str, state: State) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if name in self.used[task]}

    def _parts(self, task: str, state: State, loss: Loss) -> Iterator[Tensor]:
        """Yield the parts of a task's mean loss, batch by batch."""
        total = sum(self.sizes[task])
        for batch, size in zip(self.batches[task], self.sizes[task], strict=True):
            yield _objective(self.models[task], batch, self._given(task, state), loss) * (size / total)

    def loss(self, state: State, loss: Loss) -> float:
        """Return the mean over tasks of the mean loss."""
        with torch.no_grad():
            found = {task: float(sum(part.item() for part in self._parts(task, state, loss))) for task in self.models}
        if wrong := [f"{task} ({value})" for task, value in found.items() if not np.isfinite(value)]:
            raise WorkError(f"the loss is not finite for {', '.join(wrong)}; check the examples and the models")
        return float(np.mean(list(found.values())))

    def gradient(self, state: State, loss: Loss, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the gradient of the mean loss of tasks (all) at a state; zeros for tensors that no task uses."""
        chosen = list(self.models) if tasks is None else list(tasks)
        leaves = {name: value.detach().clone().requires_grad_(True) for name, value in state.items()}
        for task in chosen:
            for part in self._parts(task, leaves, loss):
                (part / len(chosen)).backward()  # type: ignore[no-untyped-call]
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.detach() for name, leaf in leaves.items()
        }

    def learn(
        self,
        state: State,
        picks: Sequence[State],
        guess: float,
        streams: Mapping[str, Iterator[Any]],
        steps: int,
        learning_rate: float,
        loss: Loss,
        project: bool,
    ) -> tuple[Array, int]:
        """Return learnt coefficients (picks, tensors) of the steps towards the picks, and how many steps it took.

        Stops where for 20 steps no coefficient moved, or the loss stayed the same.
        """
        tensors = self.pool.tensors
        values = torch.full((len(picks), len(tensors)), guess, requires_grad=True)
        present = torch.tensor([[tensor in pick for tensor in tensors] for pick in picks])
        ways = {t: [pick[t] - state[t] if t in pick else None for pick in picks] for t in tensors}
        optimiser = torch.optim.Adam([values], lr=learning_rate)
        taken, losses, still = 0, list[float](), 0
        for number in range(steps):
            at = {}
            for place, tensor in enumerate(tensors):
                moved = state[tensor]
                for row, way in enumerate(ways[tensor]):
                    if way is not None:
                        moved = moved + values[row, place] * way
                at[tensor] = moved
            total = torch.zeros(())
            for task, stream in streams.items():
                total = total + _objective(self.models[task], next(stream), self._given(task, at), loss)
            if not bool(torch.isfinite(total)):
                raise WorkError(f"the learning loss is {total.item()} in step {number}; lower the learning rate")
            before = values.detach().clone()
            optimiser.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if project:
                with torch.no_grad():
                    values.copy_(_project(values))
            taken = number + 1
            losses = [*losses, total.item()][-_STILL:]
            still = still + 1 if torch.equal(before, values.detach()) else 0
            level = len(losses) == _STILL and max(losses) - min(losses) <= _FLAT * max(map(abs, losses))
            if still == _STILL or level:
                break
        return np.where(present.numpy(), values.detach().numpy().astype(np.float64), 0.0), taken


def _project(values: Tensor) -> Tensor:
    """Return the closest coefficients of every column that are 0 or more and sum to at most 1.

    Source: Duchi et al., Efficient projections onto the l1-ball (2008).
    """
    clipped = values.clamp(min=0)
    ordered = values.sort(dim=0, descending=True).values
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype)[:, None]
    excess = (ordered.cumsum(dim=0) - 1) / counts
    last = (ordered > excess).sum(dim=0).clamp(min=1) - 1
    on_simplex = (values - excess.gather(0, last[None])).clamp(min=0)
    return torch.where(clipped.sum(dim=0) <= 1, clipped, on_simplex)
