"""Documents in the order of a cross-encoder: a classifier that reads query and document together.

Use: the strongest small reranker, where there is one for the domain.

Source: Nogueira and Cho 2019, Passage re-ranking with BERT.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from consilience.data.documents import Document
from consilience.errors import CheckpointError
from consilience.models.batching import length_sorted_batches
from consilience.models.heads import longest_input, open_with_head, tokenise_pairs
from consilience.retrieval.reranking.protocol import Ranked, by_score

__all__ = ["CrossEncoder"]

_BATCH_TOKENS = 2048


class CrossEncoder:
    """Scores of a sequence classifier for pairs of texts.

    folder: of transformers or of sentence-transformers' CrossEncoder, with one label (its logit is the score) or two
    (the second's logit above the first's). max_tokens: of a pair; the document is cut, and a query of more than half.
    Nothing is downloaded. Raises CheckpointError for a folder without a classifier's weights or with another number of
    labels.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None, max_tokens: int | None = None) -> None:
        model, self.tokenizer = open_with_head(folder, "SequenceClassification", wanted="cross-encoder", device=device)
        self.labels = int(model.config.num_labels)
        if self.labels not in (1, 2):
            raise CheckpointError(f"{folder}: {self.labels} labels; a cross-encoder has 1, or 2 (no, yes)")
        self.model, self.max_tokens = model, longest_input(model, max_tokens)
        self.calls = 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`; pairs of similar length are read together."""
        import torch

        if not documents:
            return []
        texts = [document.full_text for document in documents]
        found = tokenise_pairs(self.tokenizer, [query] * len(texts), texts, self.max_tokens)
        lengths = np.array([len(ids) for ids in found["input_ids"]], np.int64)
        scores = np.empty(len(texts), np.float32)
        for rows in length_sorted_batches(lengths, _BATCH_TOKENS):
            own = {name: [found[name][row] for row in rows] for name in found}
            batch = self.tokenizer.pad(own, return_tensors="pt")
            with torch.inference_mode():
                logits = self.model(**batch.to(self.model.device)).logits.float().cpu().numpy()
            scores[rows] = logits[:, 0] if self.labels == 1 else logits[:, 1] - logits[:, 0]
            self.calls += 1
        return by_score(scores.tolist())
