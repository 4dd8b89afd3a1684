"""A bundle on a suite: every query goes to the expert its router names, and searches that expert's documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consilience.bench.embeddings import Embedder, Known
from consilience.bench.search import search
from consilience.bundles.routers.protocol import BASE
from consilience.core.hashing import fingerprint
from consilience.core.progress import Progress

if TYPE_CHECKING:
    from consilience.bundles.encoding import BundleEncoder

__all__ = ["SpaceSearch"]


class _Space:
    """One space of a bundle as an encoder of documents and of the queries that are sent there."""

    def __init__(self, encoder: BundleEncoder, name: str) -> None:
        self.encoder, self.name = encoder, name
        shared, identity = encoder.shared.fingerprint, encoder.bundle.record["identity"]
        self.fingerprint = fingerprint([shared, identity, "space", name])

    @property
    def prompts(self) -> Mapping[str, str]:
        return self.encoder.prompts

    def encode(
        self, texts: Sequence[str], *, prompt: str | None = None, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        return self.encoder.encode_documents(texts, space=self.name, prompt=prompt, progress=progress)


class SpaceSearch:
    """Searches with a bundle whose experts encode documents too, so that each has a space of its own.

    Documents are encoded in the spaces that queries are sent to, and in no others. cache: folder for vectors. known:
    vectors of models that were measured before, by fingerprint: those of an expert that is kept without loss are used.
    """

    def __init__(
        self, encoder: BundleEncoder, cache: Path | None = None, known: Mapping[str, Known] | None = None
    ) -> None:
        self.encoder = encoder
        record = encoder.bundle.record
        lossless = record["residual"]["kind"] == "adapter"  # base + adapter, bit for bit
        own = {BASE: record["base"]["fingerprint"], **record.get("fingerprints", {})} if lossless else {}
        self.embedders = {
            name: Embedder(_Space(encoder, name), cache, known=(known or {}).get(own.get(name, "")))
            for name in encoder.spaces
        }

    def search(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        k: int,
        *,
        similarity: str = "cosine",
        prompts: tuple[str | None, str | None] = (None, None),
    ) -> NDArray[np.int64]:
        """Return the positions of the `k` best documents (queries, k); prompts: of queries and of documents."""
        chosen = np.array(self.encoder.route(queries, prompt=prompts[0]).chosen)
        found = np.empty((len(queries), min(k, len(documents))), np.int64)
        for name, embedder in self.embedders.items():
            rows = np.flatnonzero(chosen == name)
            if rows.size:
                asked = embedder.vectors([queries[row] for row in rows.tolist()], prompts[0])
                found[rows] = search(asked, embedder.vectors(documents, prompts[1]), k, similarity=similarity)
        return found
