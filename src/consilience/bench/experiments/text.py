"""Text classification on a small encoder: the first layers of all-MiniLM-L6-v2, one frozen linear head per task."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.bench.experiments.family import Split, State
from consilience.bench.experiments.small_encoder import BASE, first_layers
from consilience.bench.experiments.workbench import CACHE
from consilience.data.labelled import LabelledData, LabelledTexts
from consilience.data.reserved import default_data_folder
from consilience.errors import DataError, RequestError, did_you_mean

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint
    from consilience.models.batching import Tokens
    from consilience.models.classifier import Head, TextClassifier
    from consilience.models.encoder import DenseEncoder

__all__ = ["SMALL", "TASKS", "TextFamily"]

TASKS = (
    *("trec6", "ag_news", "subjectivity", "banking77", "newsgroups14"),
    *("sst2", "customer_review", "tweet_irony", "clinc150", "sst5"),
)
"""The classification sets of the public data folder, those with the clearest gain by fine-tuning first."""

SMALL: Mapping[str, Any] = {"steps": 2, "train_examples": 32, "dev_examples": 8, "test_examples": 12}
"""Settings of the smallest family that runs every step."""

_FROZEN = r"embeddings\.word_embeddings"
_VERSION = 1


@dataclass(frozen=True)
class _Steps:
    """The optimiser's settings of one run; see `train_classifier`."""

    steps: int
    batch: int
    learning_rate: float
    seed: int
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    dropout: bool = False


class TextFamily:
    """Classifiers of short texts on one encoder of `layers` layers; experts differ in the encoder, heads are frozen.

    The heads are fitted on the base's vectors of `head_examples` training texts per class, few on purpose, as zero-shot
    heads are made without any; they are the same for every seed and every state. A seed decides which `train_examples`
    texts an expert sees, in which order. Word embeddings stay the base's and are no part of a state. The scores are 1
    or 0 per text: the mean is the accuracy.

    data: the folder with one classification set per task (default: `classification` of the public data folder). Texts
    held out in any set are in no training sample. dev_examples, test_examples: texts measured per task, the same ones
    always. The defaults were chosen once, on dev, so that an expert takes about 20 CPU seconds and gains clearly over
    the base.
    """

    name = "text"

    def __init__(
        self,
        *,
        data: str | Path | None = None,
        tasks: Sequence[str] = TASKS,
        layers: int = 2,
        max_tokens: int = 24,
        head_examples: int = 16,
        head_penalty: float = 1e-3,
        train_examples: int = 3000,
        steps: int = 160,
        batch: int = 16,
        learning_rate: float = 5e-4,
        dev_examples: int = 150,
        test_examples: int = 300,
        cache: str | Path | None = None,
    ) -> None:
        self.tasks = tuple(tasks)
        folder = default_data_folder() / "classification" if data is None else Path(data)
        absent = [task for task in self.tasks if not (folder / task).is_dir()]
        if absent:
            raise DataError(
                f"the classification sets {', '.join(absent)} are not in {folder}; set CONSILIENCE_DATA to the folder "
                "of public data, or name the folder of the sets"
            )
        self.sets = {task: LabelledData.open(folder / task) for task in self.tasks}
        self.layers, self.max_tokens = layers, max_tokens
        self.head_examples, self.head_penalty = head_examples, head_penalty
        self.train_examples = train_examples
        self.steps, self.batch, self.learning_rate = steps, batch, learning_rate
        self.sizes: Mapping[Split, int] = {"dev": dev_examples, "test": test_examples}
        self.cache = Path(CACHE if cache is None else cache)
        self._heads: dict[str, Head] = {}
        self._tokens: dict[tuple[str, Split], tuple[Tokens, NDArray[np.int64]]] = {}

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides what is trained."""
        names = ("layers", "max_tokens", "head_examples", "head_penalty", "train_examples", "steps", "batch")
        return {
            "version": _VERSION,
            "base": BASE,
            "frozen": _FROZEN,
            **{name: getattr(self, name) for name in (*names, "learning_rate")},
            "data": {task: held.content_hash for task, held in self.sets.items()},
        }

    @cached_property
    def encoder(self) -> DenseEncoder:
        """The encoder, whose weights are those of the state that was used last."""
        from consilience.models.loading import load_encoder

        return load_encoder(self._small_encoder(), max_tokens=self.max_tokens)

    def _small_encoder(self) -> Path:
        return first_layers(self.layers, self.cache / self.name)

    @cached_property
    def _base(self) -> State:
        from consilience.training.classifier import trainable

        return {name: weight.detach().clone() for name, weight in trainable(self.encoder, _FROZEN).items()}

    def base(self, seed: int) -> State:
        """Return the pretrained weights, the same for every seed."""
        return {name: weight.clone() for name, weight in self._base.items()}

    def expert(self, task: str, seed: int) -> State:
        """Fine-tune the encoder on one task."""
        return self._fine_tune((task,), seed, self.steps)

    def multitask(self, tasks: Sequence[str], seed: int) -> State:
        """Fine-tune the encoder on several tasks in turn, each for as many steps as its expert."""
        return self._fine_tune(tuple(tasks), seed, self.steps * len(tasks))

    def _fine_tune(self, tasks: tuple[str, ...], seed: int, steps: int) -> State:
        from consilience.training.classifier import trainable
        from consilience.training.classifier_steps import fine_tune

        given = {task: (self.head(task), self.training_texts(task, seed)) for task in tasks}
        settings = _Steps(steps, self.batch, self.learning_rate, seed)
        with self._holding(self._base):
            parameters = trainable(self.encoder, _FROZEN)
            fine_tune(self.encoder, given, parameters, settings)
            state = {name: weight.detach().clone() for name, weight in parameters.items()}
        gc.collect()  # gradients and moments
        return state

    def training_texts(self, task: str, seed: int) -> LabelledTexts:
        """Return the training sample of a task and seed, without texts that are held out in any of the sets."""
        return self._set(task).training(against=self.sets.values()).sample(self.train_examples, seed=seed)

    def head(self, task: str) -> Head:
        """Return the frozen head of a task."""
        from consilience.training.classifier_steps import fit_head

        if task not in self._heads:
            held = self._set(task)
            examples = held.training(against=self.sets.values()).balanced(self.head_examples)
            with self._holding(self._base):
                self._heads[task] = fit_head(self.encoder, examples, held.labels, penalty=self.head_penalty)
        return self._heads[task]

    def model(self, state: State, task: str) -> TextClassifier:
        """Return a runnable classifier of its own, for statistics: those of the weights that take part in merging."""
        from consilience.models.classifier import TextClassifier
        from consilience.models.loading import load_encoder

        class Tuned(TextClassifier):
            """A classifier whose frozen weights count as no parameters."""

            @property
            def checkpoint(self) -> Checkpoint:
                opened = self.encoder.checkpoint
                return replace(opened, tensors={name: opened.tensors[name] for name in state})

            @property
            def names(self) -> Mapping[str, str]:
                return {own: tensor for own, tensor in self.encoder.names.items() if tensor in state}

        encoder = load_encoder(self._small_encoder(), max_tokens=self.max_tokens)
        _put(encoder, state)
        return Tuned(encoder, self.head(task))

    def examples(self, task: str, count: int) -> list[tuple[str, int]]:
        """Return training examples of a task, for statistics."""
        return self.training_texts(task, 0).sample(count).pairs()

    def scores(self, state: State, task: str, split: Split) -> NDArray[np.float64]:
        """Return 1 for every text of the measured sample whose class is found, else 0."""
        from consilience.models.classifier import TextClassifier

        tokens, labels = self._measured(task, split)
        classifier = TextClassifier(self.encoder, self.head(task))
        _put(self.encoder, state)
        found = classifier.predict_indices(tokens)
        right: NDArray[np.float64] = (found == labels).astype(np.float64)
        return right

    def _measured(self, task: str, split: Split) -> tuple[Tokens, NDArray[np.int64]]:
        key = (task, split)
        if key not in self._tokens:
            sample = self._set(task).examples(split).sample(self.sizes[split])
            labels = np.array([label for _, label in sample.pairs()], np.int64)
            self._tokens[key] = self.encoder.tokenise(sample.texts), labels
        return self._tokens[key]

    def _set(self, task: str) -> LabelledData:
        if task not in self.sets:
            raise RequestError(f"{self.name}: unknown task {task!r}{did_you_mean(task, self.sets)}")
        return self.sets[task]

    @contextmanager
    def _holding(self, state: State) -> Iterator[None]:
        """Give the encoder a state, and the base's again afterwards."""
        _put(self.encoder, state)
        try:
            yield
        finally:
            for parameter in self.encoder.parameters().values():
                parameter.requires_grad_(False)
                parameter.grad = None
            _put(self.encoder, self._base)


def _put(encoder: DenseEncoder, state: State) -> None:
    import torch

    parameters = encoder.parameters()
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
