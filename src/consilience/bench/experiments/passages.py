"""A small language model of passages as a family: a light expert for one task, a heavy one for another domain.

The backbone reads encyclopedia passages and questions (public data: wiki_passages, trec6). The expert "questions" is
tuned lightly to write the kind of a question (one of six) behind it; the expert "law" goes on training on paragraphs of
a statute book (law_dccode) with a larger learning rate, so its weights move several times as far. A toy of merging a
fine-tuned with a continually pre-trained model: Yu et al. 2024, arXiv 2408.03092.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.bench.experiments.language import SmallLanguageModels, shuffled
from consilience.core.hashing import fingerprint
from consilience.data.language import LanguageData
from consilience.data.reserved import default_data_folder
from consilience.errors import DataError

if TYPE_CHECKING:
    from consilience.bench.experiments.family import Split, State
    from consilience.models.causal import CausalModel

__all__ = ["Passages"]

_VERSION = 1
_CHARACTERS = 300
_POSITIONS = 96


class Passages:
    """The family. Scores: of "questions", 1 where the right kind is the likeliest; of "law", minus the mean loss.

    folder: of the public data (`$CONSILIENCE_DATA`, else ../shared/data). vocabulary: tokens of a byte-level BPE that
    is learned from the backbone's texts. Of each passage the first 300 characters are read. steps and rates: of batches
    of `batch` examples. size: law paragraphs of dev and of test each, and the most questions of each. Seeds decide
    initial weights and the order of examples. Raises DataError naming the file that is missing.
    """

    name = "passages"
    tasks = ("questions", "law")

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        vocabulary: int = 1000,
        hidden: int = 64,
        layers: int = 2,
        base_steps: int = 800,
        base_rate: float = 3e-3,
        question_steps: int = 300,
        question_rate: float = 1e-4,
        law_steps: int = 400,
        law_rate: float = 2e-3,
        batch: int = 32,
        size: int = 300,
    ) -> None:
        from consilience.models.creation import piece_tokenizer

        place = default_data_folder() if folder is None else Path(folder)
        questions = _rows(place / "classification" / "trec6" / "data.parquet", "text", "label", "split")
        wiki = shuffled(_passages(place / "tasks" / "wiki_passages" / "corpus.parquet"), "wiki")
        law = shuffled(_passages(place / "retrieval" / "law_dccode" / "corpus.parquet"), "law")
        self.kinds = sorted({str(label) for _, label, _ in questions})
        self._questions = {
            split: [(f"{text}\n", str(label)) for text, label, its in questions if its == split]
            for split in ("train", "dev", "test")
        }
        self._law = {"dev": law[:size], "test": law[size : 2 * size], "train": law[2 * size :]}
        for split in ("dev", "test"):
            self._questions[split] = shuffled(self._questions[split], split)[:size]
        self.passages = wiki + [prompt for prompt, _ in self._questions["train"]]
        config = {
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "max_position_embeddings": _POSITIONS,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
        }
        tokenizer = piece_tokenizer(self.passages, size=vocabulary, max_tokens=_POSITIONS)
        self.models = SmallLanguageModels(config, tokenizer)
        for split in ("dev", "test"):
            self._law[split] = [_beginning(text, tokenizer) for text in self._law[split]]
        self.training = {
            "base": {"steps": base_steps, "batch": batch, "learning_rate": base_rate},
            "questions": {"steps": question_steps, "batch": batch, "learning_rate": question_rate},
            "law": {"steps": law_steps, "batch": batch, "learning_rate": law_rate},
        }
        self._texts = fingerprint([self.passages, self._questions, self._law, tokenizer.backend_tokenizer.to_str()])
        self._bases: dict[int, State] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the states."""
        return {"version": _VERSION, "data": self._texts, "config": self.models.config, "training": self.training}

    def examples(self, task: str, count: int | None = None, *, split: str = "train") -> list[Any]:
        """Return the examples of a task, the first `count` of a split or all: (question, kind), or paragraphs."""
        return list((self._questions if task == "questions" else self._law)[split][:count])

    def model(self, state: State, task: str = "") -> CausalModel:
        """Return a runnable model, for statistics; the same for both tasks."""
        return self.models.model(state)

    def law_data(self, count: int) -> LanguageData:
        """Return `count` paragraphs of law to train on, with those of dev and test."""
        law = self._law
        return LanguageData.of("law", train=law["train"][:count], dev=law["dev"], test=law["test"])

    def base(self, seed: int) -> State:
        """Train on the passages and on questions without their kind."""
        if seed not in self._bases:
            settings = {**self.training["base"], "seed": seed}
            self._bases[seed] = self.models.fit(self.models.start(seed), self.passages, **settings)
        return self._bases[seed]

    def expert(self, task: str, seed: int) -> State:
        """Go on training the base of a seed on one task."""
        settings = {**self.training[task], "seed": seed + 1}
        return self.models.fit(self.base(seed), self.examples(task), **settings)

    def multitask(self, tasks: Sequence[str], seed: int) -> State:
        """Go on training on several tasks together, with the steps of all and the largest rate of any."""
        texts = [example for task in tasks for example in self.examples(task)]
        chosen = [self.training[task] for task in tasks]
        steps, rate = sum(int(one["steps"]) for one in chosen), max(one["learning_rate"] for one in chosen)
        settings = {**chosen[0], "steps": steps, "learning_rate": rate, "seed": seed + 1}
        return self.models.fit(self.base(seed), texts, **settings)

    def scores(self, state: State, task: str, split: Split) -> NDArray[np.float64]:
        """Return one score per question or paragraph of a split."""
        model = self.models.model(state)
        if task == "law":
            sums, counts = model.losses(self._law[split])
            return -sums / np.maximum(counts, 1)
        examples = self._questions[split]
        options = [(prompt, kind) for prompt, _ in examples for kind in self.kinds]
        losses = model.losses(options, size=256)[0].reshape(len(examples), len(self.kinds))
        right = np.array([self.kinds.index(kind) for _, kind in examples])
        return np.asarray(losses.argmin(axis=1) == right, np.float64)


def _beginning(text: str, tokenizer: Any) -> str:
    """Return as much of a text as fits into the model, with room for tokens that are cut differently alone."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    return text if len(ids) <= _POSITIONS else str(tokenizer.decode(ids[: _POSITIONS - 8], skip_special_tokens=True))


def _rows(path: Path, *columns: str) -> list[tuple[Any, ...]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; set CONSILIENCE_DATA to the folder of public data")
    import pandas as pd

    table: Any = pd.read_parquet(path, columns=list(columns))
    return list(table.itertuples(index=False, name=None))


def _passages(path: Path) -> list[str]:
    """Return the beginning of every text, each once."""
    texts = (str(text)[:_CHARACTERS] for (text,) in _rows(path, "text"))
    return list(dict.fromkeys(text for text in texts if text.strip()))
