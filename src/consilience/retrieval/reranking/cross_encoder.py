"""Documents in the order of a cross-encoder: a classifier that reads query and document together.

Use: the strongest small reranker, where there is one for the domain.

Source: Nogueira and Cho 2019, Passage re-ranking with BERT.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from consilience.data.documents import Document
from consilience.errors import CheckpointError, MissingExtraError
from consilience.models.batching import length_sorted_batches
from consilience.retrieval.reranking.protocol import Ranked, by_score

__all__ = ["CrossEncoder"]

_BATCH_TOKENS = 2048


class CrossEncoder:
    """Scores of a sequence classifier for pairs of texts.

    folder: of transformers or of sentence-transformers' CrossEncoder, with one label (its logit is the score) or two
    (the second's logit above the first's). max_tokens: of a pair; only the document is cut. Nothing is downloaded.
    Raises CheckpointError for a folder without a classifier's weights or with another number of labels.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None, max_tokens: int | None = None) -> None:
        try:
            import torch
            import transformers
        except ImportError:
            raise MissingExtraError("transformers", "text") from None
        place = Path(folder)
        if not (place / "config.json").is_file():
            raise CheckpointError(f"{place}: no config.json; a cross-encoder is the folder of a sequence classifier")
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
            model, facts = transformers.AutoModelForSequenceClassification.from_pretrained(
                place, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{place}: cannot be opened as a sequence classifier ({error})") from error
        if missing := sorted(facts["missing_keys"]):
            raise CheckpointError(
                f"{place}: {len(missing)} tensors of a sequence classifier are missing, such as {missing[0]}; "
                "it is no cross-encoder"
            )
        self.labels = int(model.config.num_labels)
        if self.labels not in (1, 2):
            raise CheckpointError(f"{place}: {self.labels} labels; a cross-encoder has 1, or 2 (no, yes)")
        self.model = model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        longest = int(getattr(model.config, "max_position_embeddings", 512))
        self.max_tokens = min(max_tokens or longest, longest)
        self.calls = 0

    def rerank(self, query: str, documents: Sequence[Document]) -> Ranked:
        """See `Reranker`; pairs of similar length are read together."""
        import torch

        if not documents:
            return []
        texts = [document.full_text for document in documents]
        found = self.tokenizer(
            [query] * len(texts), texts, truncation="only_second", max_length=self.max_tokens, verbose=False
        )
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
