"""What families of small language models share: one architecture, whose weights are passed around as states."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.core.randomness import stream_key, uniform_bits

if TYPE_CHECKING:
    from consilience.bench.experiments.family import State
    from consilience.models.causal import CausalModel, TextExample

__all__ = ["SmallLanguageModels", "shuffled"]


def shuffled(items: Sequence[Any], name: str) -> list[Any]:
    """Return the items in an order that depends on their number and `name` only, the same in every run.

    >>> shuffled("abcd", "split") == shuffled("abcd", "split")
    True
    """
    draws = uniform_bits(stream_key(7, name), 0, len(items)).tolist()
    return [items[index] for index in sorted(range(len(items)), key=lambda index: (draws[index], index))]


class SmallLanguageModels:
    """Makes, trains and runs causal language models of one config and tokenizer (or a string of characters).

    >>> models = SmallLanguageModels({"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1}, "01+=")
    >>> state = models.fit(models.start(seed=0), [("1+1=", "10")], seed=0, steps=20, batch=1, learning_rate=0.02)
    >>> models.model(state).generate(["1+1="], new_tokens=4)[0].text
    '10'
    """

    def __init__(self, config: Mapping[str, Any], tokenizer: Any) -> None:
        self.config, self.tokenizer = dict(config), tokenizer
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._first: CausalModel | None = None

    def start(self, seed: int) -> State:
        """Return the initial weights of a seed."""
        from consilience.models import create_causal

        with tempfile.TemporaryDirectory() as folder:
            return create_causal(Path(folder) / "model", self.config, self.tokenizer, seed=seed, device="cpu").state()

    def model(self, state: Mapping[str, Any]) -> CausalModel:
        """Return a model of its own with the weights of a state."""
        from consilience.models import create_causal

        if self._first is None:
            self._folder = tempfile.TemporaryDirectory()
            place = Path(self._folder.name) / "model"
            self._first = create_causal(place, self.config, self.tokenizer, device="cpu")
        model = copy.copy(self._first)
        model.module = copy.deepcopy(self._first.module)
        model.load(state)
        return model

    def fit(self, state: Mapping[str, Any], examples: Iterable[TextExample], **settings: Any) -> State:
        """Return the weights after training on examples; settings as `training.fit_language_model`."""
        from consilience.training.language_steps import fit_language_model

        model = self.model(state)
        fit_language_model(model, list(examples), **settings)
        return model.state()
