"""aTLAS at test time: coefficients per task vector and block from inputs without labels.

Of every class the inputs that the base is surest of are trusted: their class stands. Of the others, the model's own
prediction is the target where it is sure enough. The loss is the cross-entropy of another view of the input against
the target, so that what is learnt is to see the same in both views.

Source: Zhang et al. 2024, Knowledge Composition using Task Vectors with Learned Anisotropic Scaling (NeurIPS 2024),
section 5.3, unsupervised FixMatch (Sohn et al. 2020, arXiv 2001.07685). The paper is followed where its code departs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import cos, isfinite, pi
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from consilience.core.randomness import stream_key
from consilience.data.images import LabelledImages
from consilience.data.labelled import LabelledTexts
from consilience.errors import Problems, RequestError, WorkError
from consilience.tuning.augmentation import Augment, augmented
from consilience.tuning.composition import Composition, State, select_tensors
from consilience.tuning.learning import Descent, Guard, Learned, entropy, learn, own_tensors, shuffled_batch, sound
from consilience.tuning.shelf import scratch

if TYPE_CHECKING:
    from consilience.core.jobs import Job
    from consilience.models.model import Predictor

__all__ = ["atlas_adaptation"]

_MEASURED = 256  # inputs at a time when predictions are made, and at most in a measurement of a task
_TRUSTED_SHARE, _MOST_TRUSTED = 10, 100  # trusted inputs of a class: a tenth of those it would have, at most 100
_UNKNOWN = 0  # stands where an example has its label, so that none is seen


def atlas_adaptation(
    base: State,
    experts: Mapping[str, State],
    models: Mapping[str, Predictor],
    examples: Mapping[str, Sequence[Any] | LabelledTexts | LabelledImages],
    *,
    objective: Literal["fixmatch", "entropy"] = "fixmatch",
    threshold: float = 0.99,
    augment: Augment = augmented,
    matrices: bool = False,
    tensors: Sequence[str] | None = None,
    steps: int = 300,
    batch: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    clip: float | None = 1.0,
    every: int = 20,
    seed: int = 0,
    job: Job | None = None,
) -> Learned:
    """Learn a coefficient per expert and tensor from unlabelled inputs, by AdamW with a cosine schedule.

    base, experts: states by tensor name. models, examples: by task, a classifier and its inputs: a view without labels
    (`data.view("unlabelled")`), inputs, or pairs (input, label) whose label is never looked at. A step takes `batch`
    inputs of every task, half of them trusted ones.

    objective: "fixmatch", or "entropy" of the predictions, which is known to collapse. threshold: the probability from
    which on a prediction is a target. augment: makes the other view of an input; the default knows texts and images.
    matrices: only tensors of two dimensions take part.

    Facts: how many inputs of each task are trusted, the share of sure predictions at the start and the end, and
    `transductive`: the tasks whose view is of dev or test, which reports have to be stamped with. Where the loss
    becomes NaN or infinite the work stops, with a notice, at the last measured coefficients that had a finite one.
    Raises RequestError for tasks without inputs or with a single class, WorkError where no loss was finite up to a
    measurement.
    """
    problems = Problems()
    if not models or set(models) != set(examples):
        problems.add(f"tasks {sorted(models)} with examples of {sorted(examples)}; each task needs both")
    problems.extend(f"task {task!r} has no inputs; leave it out" for task, found in examples.items() if not len(found))
    problems.extend(
        f"task {task!r}: its outcomes are the documents of a batch; adaptation needs a classifier"
        for task, model in models.items()
        if getattr(model, "in_batch", False)
    )
    if objective not in ("fixmatch", "entropy"):
        problems.add(f"objective {objective!r}: there are fixmatch and entropy")
    if not 0 < threshold < 1 or min(steps, batch, every) < 1 or not learning_rate > 0:
        problems.add(
            f"threshold {threshold} between 0 and 1, steps {steps}, batch {batch}, every {every}, learning rate "
            f"{learning_rate}: all above 0"
        )
    problems.raise_if_any(RequestError, "atlas adaptation")
    unlabelled = {task: [(value, _UNKNOWN) for value in _inputs(found)] for task, found in examples.items()}
    chosen = tuple(tensors) if tensors is not None else select_tensors(base, matrices=matrices)
    composition = Composition(base, experts, tensors=chosen, scratch=scratch(job))
    start = {name: value.detach() for name, value in base.items()}
    trusted = {task: _trusted(task, model, unlabelled[task], start) for task, model in models.items()}

    def fixmatch(task: str, given: Sequence[Any], fixed: Sequence[Any], own: Mapping[str, Tensor], step: int) -> Tensor:
        model, random = models[task], np.random.Generator(np.random.Philox(stream_key(seed, "view", task, str(step))))
        with torch.no_grad():
            target = _logits(model, given, own).softmax(dim=-1) if given else None
        view = [(augment(value, random), _UNKNOWN) for value, *_ in [*fixed, *given]]
        predicted = _logits(model, view, own).log_softmax(dim=-1)
        classes = torch.tensor([label for _, label in fixed], dtype=torch.long, device=predicted.device)
        losses = [-predicted[: len(fixed)].gather(1, classes[:, None])[:, 0]]
        if target is not None:
            sure = target.max(dim=-1).values > threshold
            losses.append(-(target * predicted[len(fixed) :]).sum(dim=-1)[sure])
        return torch.cat(losses).mean()  # there is always a trusted one, so never a mean of nothing

    broken: list[int] = []  # steps whose loss was NaN or infinite

    def loss(task: str, own: Mapping[str, Tensor], step: int) -> Tensor:
        if objective == "entropy":
            given = shuffled_batch(unlabelled[task], batch, step - 1, task, seed=seed)
            return entropy(_logits(models[task], given, own))
        half = batch // 2
        given = shuffled_batch(unlabelled[task], half, step - 1, task, seed=seed) if half else []
        fixed = shuffled_batch(trusted[task], batch - half, step - 1, task, "trusted", seed=seed)
        return fixmatch(task, given, fixed, own, step)

    def losses(step: int, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for task, model in models.items():
            found = loss(task, own_tensors(model, parameters), step)
            if not isfinite(float(found.detach())):
                broken.append(step)
            yield task, found

    def entry(values: Tensor) -> dict[str, Any]:
        parameters = composition.parameters(values)
        shares = {}
        for task, model in models.items():
            chances = _logits(model, unlabelled[task][:_MEASURED], own_tensors(model, parameters)).softmax(dim=-1)
            shares[task] = float((chances.max(dim=-1).values > threshold).float().mean())
        return {"score": sum(shares.values()) / len(shares), "sure": shares}

    def learnt(last: int) -> tuple[Tensor, list[dict[str, Any]], list[str]]:
        descent = Descent(
            lambda raw: torch.optim.AdamW(raw, lr=learning_rate, weight_decay=weight_decay),
            last,
            clip=clip,
            schedule=lambda step: (1 + cos(pi * step / steps)) / 2,
        )
        return learn(composition, torch.zeros(composition.shape), losses, descent, Guard(entry, every), job=job)

    try:
        raw, trace, notices = learnt(steps)
    except WorkError as error:
        kept = (broken[0] - 2) // every * every if broken else 0  # measured, and the step after it had a finite loss
        if kept < 1:
            raise
        raw, trace, notices = learnt(kept)  # the same steps again; with a job they are read
        notices.append(f"{error}; stopped there, the coefficients of step {kept} are returned")
    counts = {task: len(found) for task, found in trusted.items()}
    seen = [task for task, found in examples.items() if getattr(found, "transductive", False)]
    if seen:
        notices.append(
            f"transductive: inputs of dev or test were learned from ({', '.join(seen)}); reports have to say so"
        )
    facts = {
        "objective": objective,
        "trusted": counts,
        "start": trace[0]["sure"],
        "end": trace[-1]["sure"],
        "steps": trace[-1]["step"],
        "transductive": seen,
    }
    return Learned("atlas_adaptation", composition, raw, tuple(trace), facts, tuple(notices))


def _inputs(found: Sequence[Any] | LabelledTexts | LabelledImages) -> Sequence[Any]:
    """Return the inputs alone."""
    if isinstance(found, LabelledTexts):
        return found.texts
    if isinstance(found, LabelledImages):
        return list(found.images)
    return [one[0] if isinstance(one, tuple) else one for one in found]


def _logits(model: Predictor, examples: Sequence[Any], parameters: Mapping[str, Tensor]) -> Tensor:
    (given,) = model.batches(examples, len(examples))
    return model.logits(given, parameters)


def _trusted(task: str, model: Predictor, examples: Sequence[Any], base: State) -> list[tuple[Any, int]]:
    """Return the inputs that the base is surest of, with the classes it gives them: as many of each class."""
    own = own_tensors(model, base)
    with torch.no_grad():
        parts = [
            _logits(model, examples[place : place + _MEASURED], own) for place in range(0, len(examples), _MEASURED)
        ]
    logits = torch.cat(parts)
    if logits.shape[-1] < 2 or not sound(logits):
        what = "has a single class" if logits.shape[-1] < 2 else "has predictions that are NaN or infinite"
        raise RequestError(f"atlas adaptation: task {task!r} {what}; leave it out")
    chance, predicted = logits.softmax(dim=-1).max(dim=-1)
    most = max(min(len(examples) // (_TRUSTED_SHARE * logits.shape[-1]), _MOST_TRUSTED), 1)
    found = []
    for label in range(logits.shape[-1]):
        places = torch.nonzero(predicted == label)[:, 0]
        best = places[chance[places].argsort(descending=True, stable=True)[:most]]
        found += [(examples[place][0], label) for place in best.tolist()]
    return found
