"""Three preference experts of one assistant as a family: usefulness, abstention, refusal; and mixtures of their data.

The assistant is a bag-of-words network that scores outcomes: an answer (an intent), abstaining, refusing. The base has
had a short training on a share of all examples; each expert is tuned on the preferences of one dimension (a chosen
outcome against all others or against one, by the softmax of their scores), and so forgets or overrules the others: the
conflict of helpful, honest and harmless in the small.

A toy of the setting of Yang et al. 2025, Mix Data or Merge Models?, arXiv 2502.06876.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.bench.experiments.alignment_data import DIMENSIONS, AlignmentData, Preferences
from consilience.bench.experiments.language import shuffled
from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.bench.experiments.family import Split, State

__all__ = ["MIXTURES", "Alignment"]

MIXTURES = ("uniform", "proportional", "filtered")
_VERSION = 1
_ALIKE = 0.8


@dataclass(frozen=True)
class _Fit:
    """Settings of the training loop."""

    steps: int
    learning_rate: float
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0


class Alignment:
    """The family; tasks are the three dimensions, scores 1 for each prompt whose outcome is right.

    The score of a dimension is the mean over its datasets, which hold equally many prompts (`size`). base_share: of the
    examples of each dimension that the base sees. Steps are of `batch` examples; a mixture takes as many as the three
    experts together. Seeds decide initial weights and the order of examples. folder: see `AlignmentData`.
    """

    name = "alignment"
    tasks = DIMENSIONS

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        width: int = 64,
        base_steps: int = 500,
        expert_steps: int = 200,
        base_rate: float = 5e-3,
        expert_rate: float = 1e-3,
        batch: int = 128,
        base_share: float = 0.2,
        size: int = 200,
    ) -> None:
        self.data = AlignmentData(folder, size=size)
        self.width, self.batch = width, batch
        self.base_fit, self.expert_fit = _Fit(base_steps, base_rate), _Fit(expert_steps, expert_rate)
        self.base_share = base_share
        self._bases: dict[int, State] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the states."""
        return {
            "version": _VERSION,
            "data": self.data.fingerprint,
            "width": self.width,
            "batch": self.batch,
            "base": {**vars(self.base_fit), "share": self.base_share},
            "expert": vars(self.expert_fit),
        }

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Words of the training prompts that occur twice or more; 0 is any other."""
        counted = Counter(word for part in self.data.train.values() for text in part.prompts for word in _words(text))
        return {word: index for index, word in enumerate(sorted(w for w, n in counted.items() if n > 1), start=1)}

    def base(self, seed: int) -> State:
        """Train on a share of the examples of every dimension: an assistant that can do a little of each."""
        if seed not in self._bases:
            parts = [
                part.take(shuffled(range(len(part)), name)[: int(len(part) * self.base_share)])
                for name, part in self.data.train.items()
            ]
            self._bases[seed] = self._fit(self._start(seed), Preferences.join(parts), self.base_fit, seed)
        return self._bases[seed]

    def expert(self, task: str, seed: int) -> State:
        """Tune the base of a seed on the preferences of one dimension."""
        return self._fit(self.base(seed), self.data.train[task], self.expert_fit, seed + 1)

    def multitask(self, tasks: Sequence[str], seed: int) -> State:
        """Tune on several dimensions together, as many examples of each."""
        return self._mixed("uniform", tasks, seed)

    def mixture(self, kind: Literal["uniform", "proportional", "filtered"], seed: int) -> State:
        """Tune on all dimensions: as many examples of each, all there are, or all that no other dimension opposes.

        filtered leaves out a prompt whose nearest one of another dimension (cosine of word counts 0.8 or more) wants
        another outcome.
        """
        if kind not in MIXTURES:
            raise RequestError(f"mixture {kind!r} is unknown; there are {', '.join(MIXTURES)}")
        return self._mixed(kind, DIMENSIONS, seed)

    def _mixed(self, kind: str, tasks: Sequence[str], seed: int) -> State:
        parts = {task: self.data.train[task] for task in tasks}
        if kind == "filtered":
            parts = self._filtered(parts)
        if kind == "uniform":
            most = max(map(len, parts.values()))
            parts = {task: part.take([row % len(part) for row in range(most)]) for task, part in parts.items()}
        fit = _Fit(self.expert_fit.steps * len(parts), self.expert_fit.learning_rate)
        return self._fit(self.base(seed), Preferences.join(list(parts.values())), fit, seed + 1)

    def _filtered(self, parts: Mapping[str, Preferences]) -> dict[str, Preferences]:
        counts = {task: self._counts(part.prompts) for task, part in parts.items()}
        kept = {}
        for task, part in parts.items():
            opposed = np.zeros(len(part), bool)
            for other, against in parts.items():
                if other != task:
                    similar = counts[task] @ counts[other].T
                    nearest = similar.argmax(axis=1)
                    near = similar[np.arange(len(part)), nearest] >= _ALIKE
                    opposed |= near & (against.chosen[nearest] != part.chosen)
            kept[task] = part.take(np.flatnonzero(~opposed).tolist())
        return kept

    def _counts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Return word counts of length 1, one row per prompt."""
        counts = np.zeros((len(prompts), len(self.vocabulary) + 1), np.float32)
        for row, text in enumerate(prompts):
            for word in _words(text):
                counts[row, self.vocabulary.get(word, 0)] += 1
        counts /= np.linalg.norm(counts, axis=1, keepdims=True).clip(min=1e-9)
        return counts

    def scores(self, state: State, task: str, split: Split) -> NDArray[np.float64]:
        """Return 1 per prompt of a dimension with a right outcome, dataset after dataset."""
        return np.concatenate(list(self.datasets(state, task, split).values()))

    def datasets(self, state: State, task: str, split: Split) -> dict[str, NDArray[np.float64]]:
        """Return the scores of a dimension by dataset."""
        return {held.name: held.right(self._predicted(state, held.prompts)) for held in self.data.tests[split][task]}

    def _predicted(self, state: State, prompts: Sequence[str]) -> NDArray[np.int64]:
        import torch

        with torch.inference_mode():
            found: NDArray[np.int64] = _scored(state, *self._bags(prompts)).argmax(dim=1).numpy()
        return found

    def _start(self, seed: int) -> State:
        import torch

        shapes = {
            "words.weight": (len(self.vocabulary) + 1, self.width),
            "first.weight": (self.width, self.width),
            "second.weight": (self.width, self.width),
            "outcomes.weight": (len(self.data), self.width),
        }
        state: State = {}
        for name, shape in shapes.items():
            bits = uniform_bits(stream_key(seed, name), 0, shape[0] * shape[1]) / 2.0**31 - 1.0
            bound = 1.0 if name == "words.weight" else (6.0 / shape[1]) ** 0.5
            state[name] = torch.from_numpy((bound * bits).astype(np.float32)).view(shape)
            if name != "words.weight":
                state[name.replace("weight", "bias")] = torch.zeros(shape[0])
        return state

    def _fit(self, state: State, examples: Preferences, settings: _Fit, seed: int) -> State:
        """Return the weights after training: softmax of the chosen outcome among itself and the rejected ones."""
        import torch
        from torch.nn import functional

        from consilience.training.fitting import fit

        parameters = {name: torch.nn.Parameter(value.clone()) for name, value in state.items()}
        words, starts = self._bags(examples.prompts)
        lengths = torch.diff(starts, append=torch.tensor([len(words)]))
        chosen, rejected = torch.from_numpy(examples.chosen), torch.from_numpy(examples.rejected)

        def loss_at(step: int) -> tuple[Tensor, int]:
            bits = uniform_bits(stream_key(seed, "batch"), step * self.batch, self.batch).astype(np.int64)
            rows = torch.from_numpy(bits % len(examples))
            bag = torch.cat([words[starts[row] : starts[row] + lengths[row]] for row in rows.tolist()])
            scores = _scored(parameters, bag, lengths[rows].cumsum(0) - lengths[rows])
            right, other = chosen[rows], rejected[rows]
            own = scores.gather(1, right[:, None])[:, 0]
            against_one = functional.softplus(scores.gather(1, other.clamp(min=0)[:, None])[:, 0] - own)
            against_all = functional.cross_entropy(scores, right, reduction="none")
            return torch.where(other < 0, against_all, against_one).mean(), len(bag)

        fit(loss_at, parameters, settings)
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def _bags(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the word numbers of all prompts, one after the other, and where each begins."""
        import torch

        listed = [[self.vocabulary.get(word, 0) for word in _words(text)] or [0] for text in prompts]
        starts = np.cumsum([0, *map(len, listed)])[:-1]
        return torch.tensor([word for one in listed for word in one]), torch.from_numpy(starts)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _scored(parameters: Mapping[str, Tensor], words: Tensor, starts: Tensor) -> Tensor:
    """Return the score of every outcome for every prompt."""
    from torch.nn import functional

    hidden = functional.embedding_bag(words, parameters["words.weight"], starts, mode="mean")
    for layer in ("first", "second"):
        hidden = functional.relu(functional.linear(hidden, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]))
    return functional.linear(hidden, parameters["outcomes.weight"], parameters["outcomes.bias"])
