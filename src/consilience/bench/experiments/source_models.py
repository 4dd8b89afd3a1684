"""Small character-level language models of text domains, and a target that is to learn from all of them.

Each source is trained on the documents of one domain (public data), one more on texts whose characters are shuffled: it
has nothing to teach. The target sees a small corpus of all domains. A toy of fusing the knowledge of language models.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.bench.experiments.language import SmallLanguageModels, shuffled
from consilience.bench.experiments.scores import Scores
from consilience.bench.experiments.store import load_or_make
from consilience.bench.experiments.workbench import CACHE
from consilience.core.hashing import fingerprint
from consilience.data.reserved import default_data_folder
from consilience.data.retrieval import RetrievalData

if TYPE_CHECKING:
    from consilience.bench.experiments.family import State
    from consilience.models.causal import CausalModel
    from consilience.training.fusion_x import Fused

__all__ = ["SourceModels"]

_VERSION = 1
_CHARACTERS = 88
_ALPHABET = " !\"#$%&'()*+,-./0123456789:;<=>?@[]_abcdefghijklmnopqrstuvwxyz{}"


class SourceModels:
    """Sources, target and texts.

    folder: of the public data (`$CONSILIENCE_DATA`, else ../shared/data). texts: of each domain for its source; own:
    of each domain for the target; tested: of each domain for measuring; no text is in two of these. Of each document
    the first 88 characters are read, in lower case. steps, batch, rate: of the training of a source. Raises DataError
    naming the data that are missing.
    """

    domains = ("law_dccode", "health_medquad", "code_python", "ml_pmlr")
    noise = "shuffled"

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        texts: int = 2000,
        own: int = 60,
        tested: int = 150,
        hidden: int = 48,
        layers: int = 1,
        steps: int = 500,
        batch: int = 16,
        rate: float = 4e-3,
        cache: str | Path | None = None,
    ) -> None:
        place = default_data_folder() if folder is None else Path(folder)
        self.texts: dict[str, list[str]] = {}
        self.tested: dict[str, list[str]] = {}
        self.mixed: list[str] = []
        for domain in self.domains:
            documents = RetrievalData.open(place / "retrieval" / domain).documents.texts
            found = sorted({" ".join(text.lower().split())[:_CHARACTERS] for text in documents})
            listed = shuffled([text for text in found if len(text) > 20], domain)
            self.tested[domain] = listed[:tested]
            self.mixed += listed[tested : tested + own]
            self.texts[domain] = listed[tested + own : tested + own + texts]
        draw = random.Random(7)
        everything = shuffled([text for part in self.texts.values() for text in part], self.noise)[:texts]
        self.texts[self.noise] = ["".join(draw.sample(text, len(text))) for text in everything]
        config = {
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "max_position_embeddings": _CHARACTERS + 8,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
        }
        self.models = SmallLanguageModels(config, _ALPHABET)
        self.training: dict[str, Any] = {"steps": steps, "batch": batch, "learning_rate": rate}
        settings = [_VERSION, config, _ALPHABET, self.training, self.texts, self.mixed]
        self.cache = Path(CACHE if cache is None else cache) / "source-models" / fingerprint(settings)

    @property
    def names(self) -> tuple[str, ...]:
        """The sources: one per domain, and the one of shuffled texts."""
        return (*self.domains, self.noise)

    def sources(self, seed: int) -> dict[str, CausalModel]:
        """Return the sources of a seed; trained once."""
        return {name: self.models.model(self._source(name, seed)) for name in self.names}

    def _source(self, name: str, seed: int) -> State:
        settings = {**self.training, "seed": seed}

        def make() -> State:
            return self.models.fit(self.models.start(seed + 100), self.texts[name], **settings)

        return load_or_make(self.cache / f"seed-{seed}" / name, {"source": name, **settings}, make)

    def learn(self, seed: int, sources: Mapping[str, CausalModel], **settings: Any) -> tuple[CausalModel, Fused]:
        """Return a target trained on the mixed corpus with the help of sources; settings as `distil`."""
        from consilience.training.fusion_x import distil

        target = self.models.model(self.models.start(seed))
        return target, distil(target, sources, self.mixed, seed=seed, **settings)

    def scores(self, model: CausalModel) -> Scores:
        """Return minus the loss per character of every test text, by domain."""
        found = {}
        for domain, texts in self.tested.items():
            sums, counts = model.losses(texts)
            found[domain] = -sums / np.maximum(counts, 1)
        return Scores(found)

    @staticmethod
    def perplexity(scores: Scores) -> dict[str, float]:
        """Return the perplexity by domain, from the mean loss."""
        return {domain: float(np.exp(-value)) for domain, value in scores.by_task.items()}
