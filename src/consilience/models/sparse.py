"""Learned sparse encoders: a weight for every term of the vocabulary, from a masked language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.core.hashing import file_xxh3, fingerprint
from consilience.core.progress import Progress
from consilience.errors import RequestError
from consilience.models.batching import Tokens, length_sorted_batches, pad
from consilience.models.heads import longest_input, open_with_head

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["SparseEncoder", "load_sparse"]

_BATCH_TOKENS = 1024


class SparseEncoder:
    """Texts to weights of terms: log(1 + relu(logits)) of a masked language model, the largest over all tokens.

    Made by `load_sparse`. dimension: the size of the vocabulary. terms: of a text at most so many are kept, those with
    the largest weights; None: all.

    Source: Formal, Piwowarski, Lassance and Clinchant 2021, SPLADE v2.
    """

    def __init__(self, reference: str, model: Any, tokenizer: Any, mark: str, *, max_tokens: int, terms: int | None):
        self.name, self.model, self.tokenizer, self.fingerprint = reference, model, tokenizer, mark
        self.max_tokens, self.terms = max_tokens, terms
        self.dimension = int(model.config.vocab_size)

    def encode(self, texts: Sequence[str], *, progress: Progress | None = None) -> csr_array:
        """Return the weights of texts as a CSR array of float32 (texts, vocabulary), in the order of the texts.

        Special tokens have no weight.
        """
        from scipy.sparse import csr_array

        if isinstance(texts, str):
            raise RequestError("texts is one string; give a list of strings")
        found = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, verbose=False) if texts else {}
        tokens = Tokens.from_lists(found.get("input_ids", []))
        rows: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = [(np.empty(0, np.int32), np.empty(0, np.float32))]
        rows *= len(tokens)
        for batch in length_sorted_batches(tokens.lengths, _BATCH_TOKENS):
            for place, weights in zip(batch.tolist(), self._weights(tokens, batch), strict=True):
                kept = np.flatnonzero(weights > 0)
                if self.terms is not None and len(kept) > self.terms:
                    kept = np.sort(kept[np.argsort(-weights[kept], kind="stable")[: self.terms]])
                rows[place] = kept.astype(np.int32), weights[kept]
            if progress is not None:
                progress.advance(len(batch))
        starts = np.concatenate([[0], np.cumsum([len(kept) for kept, _ in rows])]).astype(np.int64)
        terms = np.concatenate([kept for kept, _ in rows] or [np.empty(0, np.int32)])
        weights = np.concatenate([own for _, own in rows] or [np.empty(0, np.float32)])
        return csr_array((weights, terms, starts), shape=(len(tokens), self.dimension))

    def words(self, row: csr_array) -> dict[str, float]:
        """Return the terms of a text (one row) with their weights, the heaviest first."""
        order = np.argsort(-row.data, kind="stable")
        names = self.tokenizer.convert_ids_to_tokens(row.indices[order].tolist())
        return dict(zip(names, row.data[order].tolist(), strict=True))

    def _weights(self, tokens: Tokens, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        import torch

        ids, mask, _ = pad(tokens, rows, pad_id=self.tokenizer.pad_token_id or 0)
        device = self.model.device
        with torch.inference_mode():
            given = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
            logits = self.model(**given).logits.float()
            held = torch.log1p(torch.relu(logits)) * given["attention_mask"].unsqueeze(-1)
            weights = held.amax(dim=1)
            weights[:, [i for i in self.tokenizer.all_special_ids if i < self.dimension]] = 0
        found: NDArray[np.float32] = weights.cpu().numpy()
        return found


def load_sparse(
    folder: str | Path, *, device: str | None = None, max_tokens: int | None = None, terms: int | None = 256
) -> SparseEncoder:
    """Open the folder of a masked language model as a sparse encoder. Raises CheckpointError, RequestError."""
    if terms is not None and terms < 1:
        raise RequestError(f"terms {terms}: at least 1, or None for all")
    model, tokenizer = open_with_head(folder, "MaskedLM", wanted="sparse encoder", device=device)
    place, longest = Path(folder), longest_input(model, max_tokens)
    files = sorted(path for path in place.iterdir() if path.suffix in (".json", ".safetensors", ".txt", ".model"))
    mark = fingerprint([{path.name: file_xxh3(path) for path in files}, longest, terms])
    return SparseEncoder(str(folder), model, tokenizer, mark, max_tokens=longest, terms=terms)
