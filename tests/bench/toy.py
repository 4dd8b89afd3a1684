"""A suite of two tiny domains and encoders that count what they encode."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from consilience.core.progress import Progress
from consilience.data import RetrievalData, Suite
from consilience.data.suite import Domain


def domain(name: str, *, queries: int = 12, dev: bool = False) -> RetrievalData:
    splits = ("test", "dev") if dev else ("test",)
    return RetrievalData.of(
        name,
        documents={f"d{index}": f"{name} w{index} w{index + 1} w{index + 2}" for index in range(30)},
        queries={f"{split}{i}": (f"{name} {split} w{i} w{i + 1}", split) for split in splits for i in range(queries)},
        judgements=[(f"{split}{index}", f"d{index}", 1) for split in splits for index in range(queries)],
    )


def suite(*, dev: bool = False, **settings: object) -> Suite:
    domains = {name: Domain(domain(name, dev=dev)) for name in ("code", "law")}
    return Suite("toy", domains, queries=10, documents=20, **settings)  # type: ignore[arg-type]


class WordEncoder:
    """Bags of hashed words; `noise` blurs the vectors of texts that name one of the given domains."""

    def __init__(self, name: str, noise: Mapping[str, float] | None = None) -> None:
        self.name = name
        self.noise = dict(noise or {})
        self.calls: list[list[str]] = []
        self.given: list[str | None] = []

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.name, self.noise)).encode()).hexdigest()[:16]

    @property
    def prompts(self) -> Mapping[str, str]:
        return {}

    def encode(
        self, texts: Sequence[str], *, prompt: str | None = None, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        self.calls.append(list(texts))
        self.given.append(prompt)
        if progress is not None:
            progress.advance(len(texts))
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> NDArray[np.float32]:
        vector = np.zeros(64, np.float32)
        for word in text.split():
            vector += _random(word)
        noise = sum(size for name, size in self.noise.items() if name in text.split())
        return vector + np.float32(noise) * _random(self.name + text)


class BrokenEncoder(WordEncoder):
    """Returns NaN for texts of one domain."""

    def _vector(self, text: str) -> NDArray[np.float32]:
        vector = super()._vector(text)
        return vector * np.nan if "law" in text.split() else vector


def _random(word: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(64).astype(np.float32)
