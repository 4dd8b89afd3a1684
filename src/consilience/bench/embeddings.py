"""Vectors of texts, computed once: a cache keyed by the model's identity and the texts."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from consilience.core.atomic import write_bytes_atomic
from consilience.core.hashing import fingerprint
from consilience.core.progress import Progress
from consilience.errors import WorkError

__all__ = ["Embedder", "Encoder", "role_prompt"]

Known = dict[tuple[str | None, str], NDArray[np.float32]]

_FORMAT = 1
_PASSAGE_NAMES = {"query": ("query",), "document": ("document", "passage")}


class Encoder(Protocol):
    """What evaluation needs of a model: an identity, prompts, and vectors for texts.

    `fingerprint` must change with anything that changes the vectors; `encode` returns float32 (texts, dimension) in
    the order of the texts and advances `progress` by one per text. `consilience.models.DenseEncoder` is one.
    """

    @property
    def fingerprint(self) -> str:
        """Identity of the vectors."""

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prompts by name; "query" and "document" (or "passage") are used."""

    def encode(
        self, texts: Sequence[str], *, prompt: str | None = None, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Return one vector per text."""


def role_prompt(encoder: Encoder, role: str, prompts: Mapping[str, str]) -> str | None:
    """Return the prompt for "query" or "document": the suite's, else the model's own for that role, else its default.

    None leaves the choice to the encoder.
    """
    if role in prompts:
        return prompts[role]
    return next((encoder.prompts[name] for name in _PASSAGE_NAMES[role] if name in encoder.prompts), None)


class Embedder:
    """Embeds text sets with one encoder: from memory, from the cache folder, or by encoding what is missing.

    One `.npy` file per encoder and text set (`<fingerprint>-<hash of prompt and texts>.npy`), written whole or not
    at all, never pickled. `known` holds the vectors in memory, by prompt and text; another embedder of the same weights
    may share them. `encoded` counts texts that went through the encoder, `reused` those that did not.
    """

    def __init__(
        self,
        encoder: Encoder,
        cache: Path | None = None,
        *,
        progress: Progress | None = None,
        known: Known | None = None,
    ) -> None:
        self.encoder = encoder
        self.cache = cache
        self.encoded = 0
        self.reused = 0
        self.seconds = 0.0
        self._identity = encoder.fingerprint
        self._progress = progress
        self.known: Known = {} if known is None else known

    def vectors(self, texts: Sequence[str], prompt: str | None) -> NDArray[np.float32]:
        """Return the vectors of `texts`, float32 (texts, dimension)."""
        path = self._path(texts, prompt)
        found = self._load(path, len(texts))
        if found is not None:
            self._reuse(len(texts))
        else:
            missing = [text for text in dict.fromkeys(texts) if (prompt, text) not in self.known]
            self._encode(missing, prompt)
            self._reuse(len(texts) - len(missing))
            found = np.stack([self.known[prompt, text] for text in texts])
            self._save(path, found)
        for text, vector in zip(texts, found, strict=True):
            self.known.setdefault((prompt, text), vector)
        return found

    def _encode(self, texts: list[str], prompt: str | None) -> None:
        if not texts:
            return
        started = time.perf_counter()
        found = np.asarray(self.encoder.encode(texts, prompt=prompt, progress=self._progress), np.float32)
        self.seconds += time.perf_counter() - started
        self.encoded += len(texts)
        if found.ndim != 2 or len(found) != len(texts):
            raise WorkError(f"the encoder returned an array of shape {found.shape} for {len(texts)} texts")
        self.known.update(((prompt, text), vector) for text, vector in zip(texts, found, strict=True))

    def _reuse(self, count: int) -> None:
        self.reused += count
        if self._progress is not None and count:
            self._progress.skip(count)

    def _path(self, texts: Sequence[str], prompt: str | None) -> Path | None:
        if self.cache is None:
            return None
        return self.cache / f"{self._identity}-{fingerprint([_FORMAT, prompt, list(texts)])}.npy"

    def _load(self, path: Path | None, count: int) -> NDArray[np.float32] | None:
        """Read a cached array; a damaged or foreign file is a miss, and is written anew."""
        if path is None or not path.is_file():
            return None
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        usable = isinstance(found, np.ndarray) and found.dtype == np.float32 and found.ndim == 2
        return found if usable and len(found) == count else None

    def _save(self, path: Path | None, vectors: NDArray[np.float32]) -> None:
        if path is None:
            return
        buffer = io.BytesIO()
        np.save(buffer, vectors, allow_pickle=False)
        write_bytes_atomic(path, buffer.getvalue())
