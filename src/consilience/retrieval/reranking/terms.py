"""Documents in the order of a learned sparse encoder's weights of shared terms.

Source: Formal, Piwowarski, Lassance and Clinchant 2021, SPLADE v2.
"""

from __future__ import annotations

from collections.abc import Sequence

from consilience.data.documents import Document
from consilience.models.sparse import load_sparse
from consilience.retrieval.reranking.protocol import Ranked, by_score

__all__ = ["Terms"]


class Terms:
    """Dot product of term weights; folder: of a masked language model, see `consilience.models.sparse`."""

    def __init__(self, folder: str, *, device: str | None = None, max_tokens: int | None = None) -> None:
        self.encoder = load_sparse(folder, device=device, max_tokens=max_tokens)
        self.calls = 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`."""
        if not documents:
            return []
        self.calls += 1
        held = self.encoder.encode([document.full_text for document in documents])
        return by_score((held @ self.encoder.encode([query]).T).toarray()[:, 0].tolist())
