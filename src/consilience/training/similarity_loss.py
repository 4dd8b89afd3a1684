"""Losses on graded similarity: each of them looks at a whole batch of pairs, as the correlation that is measured does.

A pair has a predicted similarity (a cosine) and a gold score, 0 or more, in practice 0 (unrelated) to 1 (the same).
All return a scalar with a gradient, 0 where there is nothing to learn, and compute at least in float32.
Source: CoDiEmb, 2025; TencentCloudADP/youtu-embedding, training/CoDiEmb.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from consilience.errors import DataError
from consilience.training.settings import SIMILARITY_WEIGHTS

__all__ = ["alike_infonce", "pearson_loss", "preference_loss", "rank_divergence", "similarity_loss"]

_SAME = 1e-8  # scores that differ by no more are equal


def pearson_loss(similarity: Tensor, scores: Tensor) -> Tensor:
    """Return 1 minus Pearson's correlation of similarities and scores, between 0 and 2.

    >>> round(pearson_loss(torch.tensor([0.3, 0.2, 0.1]), torch.tensor([0.0, 0.5, 1.0])).item(), 6)
    2.0

    Both (pairs,). 0 where all scores are equal, 1 without a gradient where all similarities are: the correlation is
    undefined. Raises DataError for a score below 0 or not finite: -1 stands for a pair without one.
    """
    predicted, gold = _checked(similarity, scores)
    nothing = predicted.sum() * 0.0
    if _constant(gold):
        return nothing
    if _constant(predicted):
        return nothing + 1.0
    left, right = predicted - predicted.mean(), (gold - gold.mean()).to(predicted.dtype)
    return 1.0 - functional.cosine_similarity(left, right, dim=0, eps=0.0)


def rank_divergence(similarity: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Return the Kullback-Leibler divergence from the order of the scores to the similarities, over the pairs' number.

    >>> round(rank_divergence(torch.tensor([0.9, 0.1]), torch.tensor([1.0, 0.0])).item(), 6)
    0.0

    The order: softmax of (n - 1 - rank) / (n - 1) / temperature, rank 0 for the highest score, equal ones share their
    mean rank. Both (pairs,); 0 for one pair. Errors as `pearson_loss`.
    """
    predicted, gold = _checked(similarity, scores)
    count = len(gold)
    if count < 2:
        return predicted.sum() * 0.0
    gap = gold[None, :] - gold[:, None]
    above, level = (gap > _SAME).sum(dim=1), (gap.abs() <= _SAME).sum(dim=1)
    ranks = above + (level - 1) / 2.0
    order = ((count - 1 - ranks) / (count - 1)).to(predicted.dtype)
    return (
        functional.kl_div(
            functional.log_softmax(predicted / temperature, dim=0),
            functional.log_softmax(order / temperature, dim=0),
            reduction="sum",
            log_target=True,
        )
        / count
    )


def preference_loss(similarity: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Return the listwise preference loss: each pair against all pairs of lower score, by how much lower they are.

    >>> scores = torch.tensor([1.0, 0.0])
    >>> right, wrong = (preference_loss(torch.tensor(found), scores) for found in ([0.9, 0.1], [0.1, 0.9]))
    >>> bool(right < wrong)
    True

    For pair k with at least one lower j: weights w_j = y_k - y_j, w_k = max w_j, and the cross-entropy of w_k s_k among
    w_k s_k and all w_j s_j, over `temperature`; the mean over such k (0 if there is none). Both (pairs,). Errors as
    `pearson_loss`. After PRO, arXiv 2306.17492.
    """
    predicted, gold = _checked(similarity, scores)
    gap = (gold[:, None] - gold[None, :]).to(predicted.dtype)
    lower = gap > _SAME
    some = lower.any(dim=1)
    if not bool(some.any()):
        return predicted.sum() * 0.0
    widest = torch.where(lower, gap, torch.zeros_like(gap)).amax(dim=1)
    own = (widest * predicted / temperature)[some]
    others = (gap * predicted[None, :] / temperature).masked_fill(~lower, float("-inf"))[some]
    return (torch.logsumexp(torch.cat([own[:, None], others], dim=1), dim=1) - own).mean()


def alike_infonce(
    first: Tensor, second: Tensor, scores: Tensor, *, alike: float = 1.0, temperature: float = 0.02
) -> Tensor:
    """Return InfoNCE of the pairs with a score of at least `alike`, among the second texts of the batch; 0 without any.

    >>> alike_infonce(torch.eye(2), torch.eye(2), torch.tensor([1.0, 0.3])).item()
    0.0

    first, second: (pairs, width), any length; scores: (pairs,). Errors as `pearson_loss`.
    """
    _check(scores)
    chosen = (scores >= alike).nonzero().squeeze(1)
    if not len(chosen):
        return first.sum() * 0.0
    cosine = functional.normalize(first[chosen], dim=-1) @ functional.normalize(second, dim=-1).T
    return functional.cross_entropy(cosine / temperature, chosen)


def similarity_loss(
    first: Tensor,
    second: Tensor,
    scores: Tensor,
    middle: tuple[Tensor, Tensor] | None = None,
    *,
    weights: Mapping[str, float] = SIMILARITY_WEIGHTS,
    temperature: float = 0.02,
    rank_temperature: float = 0.05,
    alike: float = 1.0,
) -> Tensor:
    """Return the weighted sum of the losses on a batch of graded pairs.

    >>> vectors = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    >>> bool(similarity_loss(vectors[0], vectors[1], torch.tensor([1.0, 0.2, 0.6, 0.6])) > 0)
    True

    first, second: (pairs, width) vectors, any length. middle: those of a layer in the middle of the encoder, for the
    contrastive part; without it that part is left out. weights: of "middle" (`alike_infonce`), "pearson",
    "preference" and "rank". temperature: of the contrastive part; rank_temperature: of the other two.
    """
    similarity = functional.cosine_similarity(first, second, dim=-1)
    total = weights["pearson"] * pearson_loss(similarity, scores)
    total = total + weights["preference"] * preference_loss(similarity, scores, temperature=rank_temperature)
    total = total + weights["rank"] * rank_divergence(similarity, scores, temperature=rank_temperature)
    if middle is not None:
        contrast = alike_infonce(*middle, scores, alike=alike, temperature=temperature)
        total = total + weights["middle"] * contrast
    return total


def _check(scores: Tensor) -> None:
    wrong = ~(torch.isfinite(scores) & (scores >= 0))
    if bool(wrong.any()):
        raise DataError(
            f"{int(wrong.sum())} of {len(scores)} scores of similarity are below 0 or not finite, such as "
            f"{float(scores[wrong][0]):g}; a pair without a score (-1) has no place in a loss on scores"
        )


def _checked(similarity: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    _check(scores)
    if similarity.shape != scores.shape or similarity.dim() != 1 or not len(scores):
        raise DataError(f"similarities {list(similarity.shape)} and scores {list(scores.shape)}: both are (pairs,)")
    return similarity.to(torch.promote_types(similarity.dtype, torch.float32)), scores.double()


def _constant(values: Tensor) -> bool:
    """Whether values differ by no more than rounding does."""
    values = values.detach()
    spread = float((values - values.mean()).abs().max())
    return spread <= 4 * torch.finfo(values.dtype).eps * float(values.abs().max())
