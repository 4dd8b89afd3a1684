"""Losses of late-interaction training: distillation of a teacher's scores, and what it is compared with.

Source: Clavié 2024, JaColBERTv2.5 (section 3.6); margin loss: Hofstätter et al. 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from consilience.errors import RequestError

__all__ = ["distillation_loss", "late_interaction_scores", "margin_loss", "min_max", "positive_loss"]


def late_interaction_scores(query: Tensor, documents: Tensor, mask: Tensor, query_mask: Tensor | None = None) -> Tensor:
    """Return the late-interaction score of each query with its own documents, (queries, documents).

    >>> query = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    >>> documents = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [9.0, 9.0]]]])
    >>> late_interaction_scores(query, documents, torch.tensor([[[1, 1], [1, 0]]])).tolist()
    [[3.0, 2.0]]

    query: (queries, query tokens, dimension). documents: (queries, documents, tokens, dimension). mask: (queries,
    documents, tokens), 0 where a token does not count; a document of which none counts gets minus infinity.
    query_mask: (queries, query tokens); all count without it.
    """
    products = torch.einsum("qld,qntd->qnlt", query, documents)
    counted = mask.bool()
    best = products.masked_fill(~counted[:, :, None, :], float("-inf")).amax(dim=-1)
    if query_mask is not None:
        best = best.masked_fill(~query_mask.bool()[:, None, :], 0.0)
    return best.sum(dim=-1).masked_fill(~counted.any(dim=-1), float("-inf"))


def min_max(scores: Tensor) -> Tensor:
    """Return each row's scores from 0 to 1; a row of equal ones becomes zeros.

    >>> min_max(torch.tensor([[1.0, 3.0, 2.0], [4.0, 4.0, 4.0]])).tolist()
    [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]
    """
    low, high = scores.amin(dim=-1, keepdim=True), scores.amax(dim=-1, keepdim=True)
    span = high - low
    return (scores - low) / torch.where(span > 0, span, torch.ones_like(span))


def distillation_loss(scores: Tensor, teacher: Tensor, *, normalise: bool = True) -> Tensor:
    """Return the mean divergence of the student's distribution over the documents from the teacher's.

    >>> round(float(distillation_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 9.0]]))), 6)
    0.0

    scores, teacher: (queries, documents), at least 2 documents. normalise: both are brought to 0 to 1 first. KL of
    softmax(teacher) and softmax(scores), the mean over queries. Raises RequestError for a single document.
    """
    _check(scores, teacher)
    if normalise:
        scores, teacher = min_max(scores), min_max(teacher)
    wanted = torch.softmax(teacher, dim=-1)
    return functional.kl_div(torch.log_softmax(scores, dim=-1), wanted, reduction="batchmean")


def margin_loss(scores: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of margins: of the first document to each other one, here and by the teacher.

    >>> float(margin_loss(torch.tensor([[2.0, 1.0]]), torch.tensor([[5.0, 1.0]])))
    9.0
    """
    _check(scores, teacher)
    return functional.mse_loss(scores[:, :1] - scores[:, 1:], teacher[:, :1] - teacher[:, 1:])


def positive_loss(scores: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the mean cross entropy of the first document, the only one that is right, among all of a query.

    >>> round(float(positive_loss(torch.tensor([[0.0, 0.0]]))), 4)
    0.6931
    """
    _check(scores, scores)
    return functional.cross_entropy(scores / temperature, torch.zeros(len(scores), dtype=torch.int64))


def _check(scores: Tensor, teacher: Tensor) -> None:
    if scores.ndim != 2 or scores.shape != teacher.shape or scores.shape[1] < 2:
        raise RequestError(
            f"scores {list(scores.shape)}, teacher {list(teacher.shape)}: both (queries, documents), with at least 2 "
            "documents each"
        )
