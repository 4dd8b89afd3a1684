"""A small reasoner as a family: sums answered at once by the "quick" expert, step by step by the "slow" one.

A character-level transformer learns sums of two numbers of two digits in both styles mixed; the quick expert is
fine-tuned to write the digits only ("46+38=" -> "84"), the slow one to write the carry steps first
("6+8=14;4+3+1=8;84"). What counts is accuracy and the length of the answers, on sums that nobody was trained on.

A toy of the setting of Wu et al. 2025, Unlocking Efficient Long-to-Short LLM Reasoning with Model Merging,
arXiv 2503.20641.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.bench.experiments.language import SmallLanguageModels, shuffled

if TYPE_CHECKING:
    from consilience.bench.experiments.family import Split, State
    from consilience.models.causal import CausalModel

__all__ = ["Addition", "Responses", "quick_answer", "slow_answer"]

_VERSION = 1
_LONGEST = 28


@dataclass(frozen=True)
class Responses:
    """The answers to all questions of a split, one entry each.

    `right`: the text after the last ";" is the sum, and the answer was not cut; `tokens`: length, the limit where it
    was cut; `reflective`: it holds carry steps; `cut`: it did not end within the limit of 28 tokens.
    """

    right: NDArray[np.float64]
    tokens: NDArray[np.float64]
    reflective: NDArray[np.float64]
    cut: NDArray[np.float64]


def quick_answer(a: int, b: int) -> str:
    """Return the answer of the quick style.

    >>> quick_answer(46, 38)
    '84'
    """
    return str(a + b)


def slow_answer(a: int, b: int) -> str:
    """Return the answer of the slow style: units, tens with the carry, the sum.

    >>> slow_answer(46, 38)
    '6+8=14;4+3+1=8;84'
    """
    units = a % 10 + b % 10
    tens = a // 10 + b // 10 + units // 10
    return f"{a % 10}+{b % 10}={units};{a // 10}+{b // 10}+{units // 10}={tens};{a + b}"


_STYLES = {"quick": quick_answer, "slow": slow_answer}


class Addition:
    """Sums of two-digit numbers; the tasks "quick" and "slow" are two styles of answer to the same questions.

    >>> family = Addition(hidden=16, base_steps=2, expert_steps=1, questions=(20, 30))
    >>> family.responses(family.expert("quick", seed=0), "dev").tokens.shape
    (20,)

    Of the 8,100 sums, 500 are dev, 1,000 test, and the others for training; `questions` says how many of dev and test
    are asked. hidden, layers: of the transformer (108,000 parameters). The base takes `base_steps` steps of `batch`
    examples of both styles, an expert `expert_steps` in its own. Seeds decide initial weights and the order of
    examples.
    """

    name = "addition"
    tasks = ("quick", "slow")

    def __init__(
        self,
        *,
        hidden: int = 64,
        layers: int = 2,
        base_steps: int = 1600,
        base_rate: float = 4e-3,
        expert_steps: int = 100,
        expert_rate: float = 3e-4,
        batch: int = 64,
        questions: tuple[int, int] = (500, 1000),
    ) -> None:
        config = {
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "max_position_embeddings": 48,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
        }
        self.models = SmallLanguageModels(config, "0123456789+=;")
        self.base_training = {"steps": base_steps, "batch": batch, "learning_rate": base_rate}
        self.expert_training = {"steps": expert_steps, "batch": batch, "learning_rate": expert_rate}
        sums = shuffled([(a, b) for a in range(10, 100) for b in range(10, 100)], "sums")
        dev, test = questions
        self._sums = {"dev": sums[:dev], "test": sums[500 : 500 + test], "train": sums[1500:]}
        self._bases: dict[int, State] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the states."""
        training = {"base": self.base_training, "expert": self.expert_training}
        return {"version": _VERSION, "config": self.models.config, **training}

    def examples(self, task: str, count: int | None = None, *, split: str = "train") -> list[tuple[str, str]]:
        """Return (question, answer in the style of a task), the first `count` of a split or all."""
        return [(f"{a}+{b}=", _STYLES[task](a, b)) for a, b in self._sums[split][:count]]

    def base(self, seed: int) -> State:
        """Train on both styles mixed."""
        if seed not in self._bases:
            both = self.examples("quick") + self.examples("slow")
            self._bases[seed] = self.models.fit(self.models.start(seed), both, seed=seed, **self.base_training)
        return self._bases[seed]

    def expert(self, task: str, seed: int) -> State:
        """Fine-tune the base of a seed on one style."""
        return self.multitask((task,), seed)

    def multitask(self, tasks: Sequence[str], seed: int) -> State:
        """Fine-tune the base of a seed on several styles together, as long as one expert on each."""
        texts = [example for task in tasks for example in self.examples(task)]
        settings = {**self.expert_training, "steps": self.expert_training["steps"] * len(tasks)}
        return self.models.fit(self.base(seed), texts, seed=seed + 1, **settings)

    def scores(self, state: State, task: str, split: Split) -> NDArray[np.float64]:
        """Return 1 per question of a split answered rightly; the same questions for both tasks."""
        return self.responses(state, split).right

    def model(self, state: State, task: str = "") -> CausalModel:
        """Return a runnable model, for statistics; the same for both tasks."""
        return self.models.model(state)

    def responses(self, state: State, split: Split) -> Responses:
        """Answer every question of a split greedily."""
        sums = self._sums[split]
        answers = self.model(state).generate([f"{a}+{b}=" for a, b in sums], new_tokens=_LONGEST, batch_tokens=16384)
        found = [
            (
                answer.text.rpartition(";")[2] == quick_answer(a, b) and not answer.cut,
                answer.tokens,
                ";" in answer.text,
                answer.cut,
            )
            for answer, (a, b) in zip(answers, sums, strict=True)
        ]
        return Responses(*np.array(found, np.float64).T)
