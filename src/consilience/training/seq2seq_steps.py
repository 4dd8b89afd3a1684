"""The steps of sequence-to-sequence training: which examples of which task go together, and their loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from consilience.core.progress import Progress
from consilience.core.randomness import stream_key, uniform_bits
from consilience.data.instructions import AnswerScores, InstructionData, TrainingInstances
from consilience.data.prompting import Prompting
from consilience.errors import DataError, RequestError
from consilience.training.fitting import TrainingState, fit

if TYPE_CHECKING:
    from consilience.models.seq2seq import Seq2SeqModel
    from consilience.training.settings import CommonSettings

__all__ = ["Mixing", "Seq2SeqSteps", "TaskExamples", "answer_tasks", "check_mixing", "fit_seq2seq", "task_examples"]

Mixing = str | float
_MIXINGS = ("proportional", "equal")


@dataclass(frozen=True)
class TaskExamples:
    """(input, target) pairs of all tasks, one task after the other; sizes by task; what was shortened."""

    pairs: tuple[tuple[str, str], ...]
    sizes: Mapping[str, int]
    fewer_examples: int
    cut_inputs: int

    def __len__(self) -> int:
        return len(self.pairs)


def task_examples(
    model: Seq2SeqModel, data: InstructionData, given: TrainingInstances, prompting: Prompting
) -> TaskExamples:
    """Return what a model is trained on: inputs under their instructions, the first right answer as target.

    Raises DataError naming a task whose instruction or whose answer is longer than the model takes.
    """
    pairs: list[tuple[str, str]] = []
    fewer = cut = 0
    for name, instances in given.instances.items():
        found = prompting.prompts(data.tasks[name], instances, model.count_tokens, model.max_tokens)
        targets = [one.outputs[0] for one in instances]
        longest = max(model.count_tokens(targets))
        if longest > model.max_tokens:
            raise DataError(f"task {name}: an answer has {longest} tokens, the model takes {model.max_tokens}")
        pairs += zip(found.texts, targets, strict=True)
        fewer, cut = fewer + found.fewer_examples, cut + found.cut_inputs
    return TaskExamples(tuple(pairs), {name: len(one) for name, one in given.instances.items()}, fewer, cut)


def check_mixing(mixing: Mixing) -> None:
    """Raise RequestError for a mixing that is not known."""
    if isinstance(mixing, str) and mixing not in _MIXINGS:
        raise RequestError(f"mixing {mixing!r} is unknown; use proportional, equal or a temperature such as 2.0")
    if not isinstance(mixing, str) and not (math.isfinite(mixing) and mixing > 0):
        raise RequestError(f"mixing is {mixing:g}; a temperature is above 0")


class Seq2SeqSteps:
    """The loss of each step, a function of (seed, step) and the model's parameters.

    mixing "proportional" shuffles all examples together, epoch by epoch; "equal" draws every task alike, and a
    temperature T draws tasks of n examples in proportion to n ** (1 / T), the examples of a task in its own epochs.
    A batch larger than the data holds examples twice.
    """

    def __init__(
        self,
        model: Seq2SeqModel,
        pairs: Sequence[tuple[str, str]],
        settings: CommonSettings | _Defaults,
        *,
        sizes: Sequence[int] = (),
        mixing: Mixing = "proportional",
    ) -> None:
        check_mixing(mixing)
        if not pairs:
            raise DataError("there are no training examples")
        self.model, self.settings = model, settings
        self.tokens = model.tokenise(pairs)
        total = settings.steps * settings.batch
        held = np.array([size for size in sizes if size] or [len(pairs)])
        if mixing == "proportional":
            self.rows = _epochs(settings.seed, "all", len(pairs), total)
        else:
            self.rows = _mixed(settings.seed, held, total, 0.0 if mixing == "equal" else 1 / float(mixing))

    def __call__(self, step: int) -> tuple[Tensor, int]:
        """Return the mean loss per target token of a step (0, 1, ...), and the number of tokens it took."""
        settings = self.settings
        rows = self.rows[step * settings.batch : (step + 1) * settings.batch]
        if settings.dropout:  # a function of (seed, step), so that a resumed run drops the same units
            torch.manual_seed(stream_key(settings.seed, "dropout", str(step)) >> 1)
        return self.model.loss(self.model.batch(self.tokens, rows)), int(self.tokens.lengths[rows].sum())


def _epochs(seed: int, name: str, count: int, total: int) -> NDArray[np.int64]:
    """Return `total` indices below `count`: one permutation after the other."""
    parts = [
        np.argsort(uniform_bits(stream_key(seed, "order", name, str(epoch)), 0, count), kind="stable")
        for epoch in range(-(-total // count))
    ]
    return np.concatenate(parts)[:total]


def _mixed(seed: int, sizes: NDArray[np.int64], total: int, power: float) -> NDArray[np.int64]:
    """Return `total` indices: tasks drawn in proportion to size ** power, each through its own epochs."""
    shares = sizes.astype(np.float64) ** power
    edges = np.cumsum(shares / shares.sum())
    draws = (uniform_bits(stream_key(seed, "tasks"), 0, total) + 0.5) / 2.0**32
    tasks = np.minimum(np.searchsorted(edges, draws, side="right"), len(sizes) - 1)
    starts = np.cumsum(sizes) - sizes
    rows = np.empty(total, np.int64)
    for task, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        places = np.flatnonzero(tasks == task)
        if len(places):
            rows[places] = start + _epochs(seed, str(task), size, len(places))
    return rows


@dataclass(frozen=True)
class _Defaults:
    """Settings of `fit_seq2seq` in the form that `fit` and `Seq2SeqSteps` read."""

    steps: int
    batch: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    clip: float
    seed: int
    dropout: bool


def fit_seq2seq(
    model: Seq2SeqModel,
    pairs: Sequence[tuple[str, str]],
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
    """Train a model in memory, in place, on (input, target) pairs; return the losses.

    >>> import tempfile
    >>> from consilience.models.seq2seq_loading import create_seq2seq, word_tokenizer
    >>> config = {"model_type": "t5", "d_model": 16}
    >>> model = create_seq2seq(tempfile.mkdtemp() + "/tiny", config, word_tokenizer(["one two"]))
    >>> state = fit_seq2seq(model, [("one", "two"), ("two", "one")], steps=20, batch=2, learning_rate=0.01)
    >>> state.losses[-1] < state.losses[0]
    True

    parameters: those that are trained (all); see `train_seq2seq` for the rest, and for training with a record.
    """
    settings = _Defaults(steps, batch, learning_rate, schedule, warmup, weight_decay, clip, seed, dropout)
    trained = model.parameters() if parameters is None else parameters
    model.module.train(dropout)
    state = fit(Seq2SeqSteps(model, pairs, settings), trained, settings, after_step=after_step, progress=progress)
    model.module.eval()
    return state


def answer_tasks(
    model: Seq2SeqModel,
    data: InstructionData,
    *,
    split: str = "test",
    prompting: Prompting | None = None,
    limit: int | None = None,
    new_tokens: int = 32,
    beams: int = 1,
) -> dict[str, AnswerScores]:
    """Let a model answer the instances of a split, and return the scores by task.

    limit: at most as many instances of every task, the first ones (None: all). The rest is that of
    `Seq2SeqModel.generate` and `Prompting`.
    """
    asked = prompting or Prompting()
    found = {}
    for name, task in data.tasks.items():
        if not task.splits.get(split):
            continue
        shown = task if limit is None else task.first(split, limit)
        prompts = asked.prompts(shown, shown.instances(split), model.count_tokens, model.max_tokens)
        answers = model.generate(prompts.texts, new_tokens=new_tokens, beams=beams)
        found[name] = shown.score([answer.text for answer in answers], split=split)
    return found
