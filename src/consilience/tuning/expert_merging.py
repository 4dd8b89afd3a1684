"""Expert Merging: coefficients by tensor, so that the merged model imitates every expert on a few unlabelled inputs.

    minimise over c   sum_k beta_k (L_hidden + L_logit) + gamma mean |c - start|
    L_hidden: mean squared error of hidden states, mean over the chosen modules;  L_logit: cross-entropy with the
    expert's probabilities at temperature T, times T^2;  c = sigmoid(raw)

The ++ variant learns once, computes how important each tensor is, cuts important ones into several pieces with a
coefficient each, leaves unimportant ones at the start, and learns again: `importance`, `chunk_counts`, then `pieces`.

Source: Expert Merging, ICLR 2026 (arXiv 2509.25712), code Littleor/ExpertMerging; formulas of the importance from a
published summary of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from consilience.errors import Problems, RequestError, WorkError, did_you_mean
from consilience.tuning.composition import Composition, State, select_tensors
from consilience.tuning.learning import Descent, Guard, Learned, choice_problems, learn, own_tensors, sound
from consilience.tuning.shelf import scratch

if TYPE_CHECKING:
    from consilience.core.jobs import Job
    from consilience.models.model import Predictor

__all__ = ["chunk_counts", "expert_merging", "importance"]

_EDGE = 1e-4  # sigmoids start within [edge, 1 - edge]
_CYCLE = 50  # steps of the first cosine cycle; each later one is twice as long
_FLOOR = 0.1  # of the learning rate


def expert_merging(
    base: State,
    experts: Mapping[str, State],
    models: Mapping[str, Predictor],
    examples: Mapping[str, Sequence[Any]],
    *,
    hidden: Sequence[str] = (),
    hidden_weight: float = 1.0,
    logit_weight: float = 1.0,
    temperature: float = 1.0,
    task_weights: Mapping[str, float] | None = None,
    start: float = 0.1,
    regularisation: float = 5.0,
    constrained: bool = True,
    pieces: Mapping[str, int] | None = None,
    exclude: str = "",
    steps: int = 50,
    accumulation: int = 8,
    batch: int = 1,
    learning_rate: float = 0.5,
    weight_decay: float = 1e-5,
    clip: float | None = 1.0,
    every: int = 10,
    job: Job | None = None,
) -> Learned:
    """Learn coefficients by imitation of the experts.

    base, experts: states by tensor name. models, examples: by task, a predictor and a few inputs (5 to 10); a task has
    the name of its expert. Labels in examples are never looked at. hidden: names of modules of the predictors'
    networks whose outputs are hidden states to imitate; none: logits only.

    A step adds up `accumulation` losses, tasks visited in turn, `batch` inputs each; weights of the losses are
    `hidden_weight`, `logit_weight` and by task `task_weights`. start: what coefficients start at and are drawn to, by
    `regularisation`. constrained: coefficients stay between 0 and 1 (a sigmoid); otherwise they are free. pieces: how
    many coefficients a tensor gets per expert; 0: it stays at the start. exclude: a regular expression of tensors that
    stay at the base. The learning rate follows a cosine with restarts after 50, 150, 350 ... steps.

    Facts of the result: the loss of imitation on all inputs at the start and the end (mean over tasks), and how many
    coefficients were learnt. Raises RequestError, and WorkError for a loss that is NaN or infinite.
    """
    problems = Problems()
    if not models or set(models) != set(examples) or set(models) - set(experts):
        problems.add(
            f"tasks {sorted(models)} with examples of {sorted(examples)} and experts {sorted(experts)}; each task "
            "needs all three, under one name"
        )
    problems.extend(f"task {name!r} has no inputs" for name, found in examples.items() if not len(found))
    if logit_weight:
        problems.extend(choice_problems(models, examples, batch))
    for task, model in models.items():
        modules = dict(model.module.named_modules())
        problems.extend(
            f"hidden: {m!r} is no module of {task!r}{did_you_mean(m, modules)}" for m in {*hidden} - {*modules}
        )
    if min(steps, accumulation, batch, every) < 1 or not learning_rate > 0 or not temperature > 0:
        problems.add("steps, accumulation, batch, every, learning rate and temperature: all above 0")
    if constrained and not 0 <= start <= 1:
        problems.add(f"start {start}: coefficients stay between 0 and 1; use constrained=False for others")
    problems.raise_if_any(RequestError, "expert merging")
    given = dict(pieces or {})
    composition = Composition(
        base,
        experts,
        tensors=select_tensors(base, exclude=exclude),
        pieces={name: count for name, count in given.items() if count > 0},
        scratch=scratch(job),
    )
    fixed = [given.get(block, 1) == 0 for block in composition.blocks]
    frozen = torch.tensor(fixed).expand(composition.shape) if any(fixed) else None
    imitation = _Imitation(experts, models, examples, hidden, (hidden_weight, logit_weight), temperature, batch)
    tasks = list(models)
    weights = {task: (task_weights or {}).get(task, 1.0) for task in tasks}

    def losses(step: int, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for visit in range((step - 1) * accumulation, step * accumulation):
            task = tasks[visit % len(tasks)]
            place = (visit // len(tasks)) % len(imitation.batches[task])
            yield task, weights[task] / accumulation * imitation.loss(task, place, parameters)

    def values(raw: Tensor) -> Tensor:
        return raw.sigmoid() if constrained else raw

    learnt = composition.shape[0] * sum(not is_fixed for is_fixed in fixed)
    descent = Descent(
        lambda raw: torch.optim.AdamW(raw, lr=learning_rate, weight_decay=weight_decay),
        steps,
        clip=clip,
        schedule=_restarts,
        penalty=lambda found: regularisation * (found - start).abs().sum() / max(learnt, 1),
        values=values,
        frozen=frozen,
    )
    inside = min(max(start, _EDGE), 1 - _EDGE)
    first = torch.full(composition.shape, math.log(inside / (1 - inside)) if constrained else start)
    guard = Guard(lambda found: imitation.entry(composition.parameters(found)), every)
    raw, trace, notices = learn(composition, first, losses, descent, guard, job=job)
    end = trace[-1]
    if notices:  # what is returned may be an earlier point
        with torch.no_grad():
            end = imitation.entry(composition.parameters(values(raw)))
    facts = {"start": trace[0]["imitation"], "end": end["imitation"], "coefficients": learnt}
    name = "expert_merging++" if pieces else "expert_merging"
    return Learned(name, composition, values(raw), tuple(trace), facts, tuple(notices))


def _restarts(step: int) -> float:
    """Return the factor of the learning rate: a cosine from 1 to the floor in cycles of 50, 100, 200 ... steps."""
    length = _CYCLE
    while step >= length:
        step -= length
        length *= 2
    return _FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * step / length)) / 2


def importance(learned: Learned) -> dict[str, float]:
    """Return how important every tensor is: sum over experts of |c| x mean |tau| x size; the shares sum to 1."""
    composition = learned.composition
    found = {}
    for name, blocks in composition.index.items():
        ways = composition.task_vectors[name].to(torch.float64).abs().flatten(1)
        coefficient = learned.values[:, blocks.start : blocks.stop].detach().to(torch.float64).abs().mean(dim=1)
        found[name] = float((coefficient * ways.sum(dim=1)).sum())
    total = sum(found.values())
    return {name: value / total if total else 1 / len(found) for name, value in found.items()}


def chunk_counts(shares: Mapping[str, float], budget: int, *, steepness: float = 1.0) -> dict[str, int]:
    """Return how many coefficients per expert each tensor gets: floor(budget x share^steepness / their sum).

    >>> chunk_counts({"a": 0.7, "b": 0.25, "c": 0.05}, budget=4)
    {'a': 2, 'b': 1, 'c': 0}
    >>> chunk_counts({"a": 0.7, "b": 0.3}, budget=2, steepness=0)
    {'a': 1, 'b': 1}

    budget: coefficients per expert, 0.9 to 1.2 times the number of tensors is usual; the counts sum to it or less.
    """
    powers = {name: share**steepness for name, share in shares.items()}
    total = sum(powers.values())
    return {name: int(budget * power / total + 1e-9) for name, power in powers.items()}


class _Imitation:
    """The experts' hidden states and probabilities on their inputs, and how far a composed model is from them."""

    def __init__(
        self,
        experts: Mapping[str, State],
        models: Mapping[str, Predictor],
        examples: Mapping[str, Sequence[Any]],
        hidden: Sequence[str],
        weights: tuple[float, float],
        temperature: float,
        batch: int,
    ) -> None:
        self.models, self.hidden, self.weights, self.temperature = models, tuple(hidden), weights, temperature
        self.batches = {task: list(model.batches(list(examples[task]), batch)) for task, model in models.items()}
        self.expected: dict[str, list[tuple[list[Tensor], Tensor]]] = {}
        for task, model in models.items():
            own = {
                name: experts[task][name].detach().to(_precision(experts[task][name])) for name in model.names.values()
            }
            with torch.no_grad():
                self.expected[task] = [self._run(model, given, own) for given in self.batches[task]]
            if not all(sound(logits) for _, logits in self.expected[task]):
                raise WorkError(
                    f"task {task!r}: the expert's predictions are nan or infinite, and so is the loss; check its inputs"
                )

    def _run(self, model: Predictor, given: Any, parameters: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        with _outputs(model, self.hidden) as states:
            logits = model.logits(given, parameters)
        return [states[name] for name in self.hidden], logits

    def loss(self, task: str, place: int, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of imitation on one batch of a task's inputs."""
        model = self.models[task]
        states, logits = self._run(model, self.batches[task][place], own_tensors(model, parameters))
        wanted_states, wanted = self.expected[task][place]
        warmth = self.temperature
        target = (wanted / warmth).softmax(dim=-1)
        loss = self.weights[1] * warmth**2 * _cross_entropy(target, logits / warmth)
        for state, expected in zip(states, wanted_states, strict=True):
            loss = loss + self.weights[0] / len(states) * functional.mse_loss(state, expected)
        return loss

    def entry(self, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the mean loss of imitation over tasks and all inputs."""
        each = [
            sum(float(self.loss(task, place, parameters)) for place in range(len(found))) / len(found)
            for task, found in self.batches.items()
        ]
        mean = sum(each) / len(each)
        return {"score": -mean, "imitation": mean}


def _cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats; outcomes that neither side allows (minus infinity) count nothing."""
    return -(target * logits.log_softmax(dim=-1).clamp(min=-1e4)).sum(dim=-1).mean()


def _precision(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@contextmanager
def _outputs(model: Predictor, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of modules while a model runs; of a tuple, its first part."""
    found: dict[str, Tensor] = {}
    modules = dict(model.module.named_modules())

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    with ExitStack() as stack:
        for name in names:
            stack.callback(modules[name].register_forward_hook(keep(name)).remove)
        yield found
