"""Contrastive losses: in-batch negatives, and groups of positives and hard negatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["grouped_infonce", "in_batch_negatives"]


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


def grouped_infonce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float = 0.02,
    left_out: Tensor | None = None,
) -> Tensor:
    """Return InfoNCE with several positives and hard negatives per query: each slot of positives on its own.

    >>> q = torch.eye(2)
    >>> round(grouped_infonce(q, q[:, None], -q[:, None]).item(), 6)
    0.0

    In slot p a query finds its p-th positive among the p-th positives and all hard negatives of every query of the
    batch (cross-entropy of cosine / `temperature`); the mean over queries and slots. A query's positives of other slots
    are never its negatives.

    queries: (batch, width). positives: (batch, slots, width). negatives: (batch, count, width) or None. Any length.
    left_out: bool (slots, batch, batch + batch x count), True for candidates that do not count for a query, because
    they are relevant for it too; its own positive always counts. Source: CoDiEmb, 2025, of which
    TencentCloudADP/youtu-embedding is the code.
    """
    count, slots = positives.shape[:2]
    asked = functional.normalize(queries, dim=-1)
    hard = positives[:, :0] if negatives is None else negatives
    against = asked @ functional.normalize(hard.flatten(0, 1), dim=-1).T
    cosine = asked @ functional.normalize(positives, dim=-1).transpose(0, 1).transpose(1, 2)
    logits = torch.cat([cosine, against.expand(slots, -1, -1)], dim=2) / temperature
    if left_out is not None:
        own = torch.eye(count, logits.shape[2], dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(left_out & ~own, float("-inf"))
    wanted = torch.arange(count, device=logits.device).repeat(slots)
    return functional.cross_entropy(logits.flatten(0, 1), wanted)
