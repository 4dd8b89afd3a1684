"""The parts of Fusion-X: which source models to listen to on a text, and what they say together.

Source: Fusion-X, 2025, arXiv 2505.23844; ZLKong/LLM_Integration. The published code makes a new selector at every step
and never trains it; here it is one network that is trained, as the paper describes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from consilience.errors import DataError

__all__ = ["Selector", "feedback_loss", "fuse_distributions", "rewards", "selection_threshold"]


def rewards(losses: Tensor) -> Tensor:
    """Return the reward of sources: exp(-loss), 1 over the perplexity, in float32.

    >>> rewards(torch.tensor([[0.0, 1000.0]])).tolist()
    [[1.0, 0.0]]

    losses: cross-entropy per counted token in nats. One that is not finite has the reward 0.
    """
    found = torch.exp(-losses.float())
    return torch.where(torch.isfinite(losses), found, torch.zeros_like(found))


def selection_threshold(sources: int, threshold: float = 0.15) -> float:
    """Return the least weight of a source that is kept: `threshold`, or 0.75 / sources where that is lower.

    >>> selection_threshold(4), selection_threshold(10)
    (0.15, 0.075)

    With seven sources of equal weight a fixed 0.15 would keep none.
    """
    return min(threshold, 0.75 / sources)


class Selector(nn.Module):
    """A network from the rewards of N sources on a text to weights of the sources that are kept.

    >>> weights, share = Selector(3, seed=0)(torch.tensor([[0.5, 0.4, 0.1]]))
    >>> weights.shape, bool((weights.sum(dim=1) - 1).abs().max() < 1e-6)
    (torch.Size([1, 3]), True)

    N -> 2N -> N -> N with GELU between, then softmax: `share` (texts, N). Sources with a share above the threshold are
    kept, the largest one where there is none; `weights` are their shares, made to sum to 1, and 0 for the others, so
    gradients pass through kept sources only. present: bool (texts, N), False where a source says nothing of a text.
    Raises DataError for a text of which no source says anything. The first weights are a function of `seed`.
    """

    def __init__(self, sources: int, *, threshold: float = 0.15, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                nn.Linear(sources, 2 * sources),
                nn.GELU(),
                nn.Linear(2 * sources, sources),
                nn.GELU(),
                nn.Linear(sources, sources),
            )
        self.threshold = selection_threshold(sources, threshold)

    def forward(self, found: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return weights and shares, each (texts, sources), for rewards (texts, sources)."""
        logits: Tensor = self.network(found)
        if present is not None:
            if not bool(present.any(dim=1).all()):
                raise DataError(f"{int((~present.any(dim=1)).sum())} texts have no source that says anything of them")
            logits = logits.masked_fill(~present, float("-inf"))
        share = torch.softmax(logits, dim=1)
        kept = share > self.threshold
        largest = torch.zeros_like(kept).scatter(1, share.argmax(dim=1, keepdim=True), True)
        kept = torch.where(kept.any(dim=1, keepdim=True), kept, largest)
        weights = share * kept
        return weights / (weights.sum(dim=1, keepdim=True) + 1e-8), share


def fuse_distributions(distributions: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of the sources' distributions.

    >>> fuse_distributions(torch.tensor([[[[0.5, 0.5]]], [[[1.0, 0.0]]]]), torch.tensor([[0.5, 0.5]])).tolist()
    [[[0.75, 0.25]]]

    distributions: (sources, texts, positions, outcomes); weights: (texts, sources). Raises DataError where a source
    that counts does not sum to 1 within 1e-3.
    """
    counts = (weights > 0).T[:, :, None]
    off = ((distributions.sum(dim=-1) - 1).abs() > 1e-3) & counts
    if bool(off.any()):
        raise DataError(f"{int(off.sum())} distributions of sources do not sum to 1 within 0.001")
    quiet = torch.where(counts[..., None], distributions, torch.zeros_like(distributions))
    return torch.einsum("stpo,ts->tpo", quiet, weights)


def feedback_loss(importance: Tensor) -> Tensor:
    """Return the squared coefficient of variation of the sources' importance: 0 where all are equal.

    >>> feedback_loss(torch.tensor([2.0, 2.0])).item(), round(feedback_loss(torch.tensor([4.0, 0.0])).item(), 6)
    (0.0, 2.0)

    importance: (sources,), the sum of each one's weights over positions. Unbiased variance over the squared mean; 0 for
    one source.
    """
    if len(importance) < 2:
        return importance.sum() * 0.0
    return importance.var() / (importance.mean().square() + 1e-10)
