"""The steps of next-token training: which examples go through the model together, and their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from consilience.core.progress import Progress
from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import DataError
from consilience.training.fitting import TrainingState, fit

if TYPE_CHECKING:
    from consilience.models.causal import CausalModel, TextExample
    from consilience.training.settings import CommonSettings

__all__ = ["LanguageSteps", "fit_language_model"]


@dataclass(frozen=True)
class _Defaults:
    """Settings of `fit_language_model` in the form that `fit` and `LanguageSteps` read."""

    steps: int
    batch: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    clip: float
    seed: int
    dropout: bool


class LanguageSteps:
    """The loss of each step, a function of (seed, step) and the model's parameters.

    Texts longer than the model takes are cut into windows. An epoch is a permutation of the examples; its remainder,
    smaller than a batch, is left out. Raises DataError when a batch is larger than the data.
    """

    def __init__(
        self, model: CausalModel, examples: Sequence[TextExample], settings: CommonSettings | _Defaults
    ) -> None:
        self.model, self.settings = model, settings
        self.tokens, self.first = model.tokenise(examples, cut=True)
        self.epoch = len(self.tokens) // settings.batch
        if not self.epoch:
            raise DataError(
                f"the batch is {settings.batch}, but there are only {len(self.tokens)} training examples; "
                "use a smaller batch"
            )

    def __call__(self, step: int) -> tuple[Tensor, int]:
        """Return the mean loss per counted token of a step (0, 1, ...), and the number of tokens it took."""
        settings = self.settings
        epoch, place = divmod(step, self.epoch)
        draws = uniform_bits(stream_key(settings.seed, "order", str(epoch)), 0, len(self.tokens))
        rows = np.argsort(draws, kind="stable")[place * settings.batch : (place + 1) * settings.batch]
        if settings.dropout:  # a function of (seed, step), so that a resumed run drops the same units
            torch.manual_seed(stream_key(settings.seed, "dropout", str(step)) >> 1)
        batch = self.model.batch(self.tokens, self.first, rows)
        return self.model.loss(batch), int(self.tokens.lengths[rows].sum())


def fit_language_model(
    model: CausalModel,
    examples: Sequence[TextExample],
    *,
    steps: int,
    batch: int = 32,
    learning_rate: float = 1e-3,
    schedule: str = "linear",
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    seed: int = 0,
    dropout: bool = False,
    parameters: Mapping[str, nn.Parameter] | None = None,
    after_step: Callable[[TrainingState], None] | None = None,
    progress: Progress | None = None,
) -> TrainingState:
    """Train a model in memory, in place, on texts or (prompt, completion); return the losses.

    >>> import tempfile
    >>> from consilience.models import create_causal
    >>> config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1}
    >>> model = create_causal(tempfile.mkdtemp() + "/tiny", config, "ab")
    >>> state = fit_language_model(model, ["abababab", ("aba", "b")], steps=20, batch=2, learning_rate=0.01)
    >>> state.losses[-1] < state.losses[0]
    True

    parameters: those that are trained (all); see `train_language_model` for the rest, and for training with a record.
    """
    settings = _Defaults(steps, batch, learning_rate, schedule, warmup, weight_decay, clip, seed, dropout)
    trained = model.parameters() if parameters is None else parameters
    model.module.train(dropout)
    state = fit(LanguageSteps(model, examples, settings), trained, settings, after_step=after_step, progress=progress)
    model.module.eval()
    return state
