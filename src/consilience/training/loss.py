"""The in-batch-negatives contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["in_batch_negatives"]


def in_batch_negatives(queries: Tensor, documents: Tensor, relevant: Tensor, *, scale: float = 20.0) -> Tensor:
    """Return the mean cross-entropy of finding each query's own document among the documents of the batch.

    >>> q = torch.eye(2)
    >>> round(in_batch_negatives(q, q, torch.zeros(2, 2, dtype=torch.bool)).item(), 6)
    0.0

    queries, documents: (batch, width), row i of one belongs to row i of the other; any length. relevant: (batch,
    batch) bool, True where document j is also relevant for query i; those are left out (the own document never is).
    scale: factor on the cosine. Source: InfoNCE, arXiv 1807.03748; in this form, arXiv 1705.00652.
    """
    cosine = functional.normalize(queries, dim=-1) @ functional.normalize(documents, dim=-1).T
    own = torch.eye(len(queries), dtype=torch.bool, device=cosine.device)
    logits = (cosine * scale).masked_fill(relevant & ~own, float("-inf"))
    return functional.cross_entropy(logits, torch.arange(len(queries), device=cosine.device))
