"""Logit distances between experts: g_ij = mean over task j's examples of the L2 distance of the logits of i and j.

Of a text, the distance is the mean over its counted positions. Sens-Merging weighs expert i by the sum of g_ij over j.

Source: Liu et al. 2025, arXiv 2502.12420 (a reconstruction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from consilience.errors import RequestError
from consilience.tuning.inputs import evaluating
from consilience.tuning.statistic import counted_positions

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["logit_distances"]


def logit_distances(
    models: Mapping[str, Predictor], task: str, examples: Sequence[Any], *, batch: int = 8
) -> dict[str, float]:
    """Return the mean distance of each other expert's logits to those of expert `task` on its examples.

    Raises RequestError where two experts predict different outcomes.
    """
    totals = dict.fromkeys((name for name in models if name != task), 0.0)
    own = models[task]
    size = batch if getattr(own, "in_batch", False) else 1
    for name in totals:
        other = models[name]
        with torch.no_grad(), evaluating(own), evaluating(other):
            pairs = zip(own.batches(examples, size), other.batches(examples, size), strict=True)
            for first, second in pairs:
                totals[name] += _distance(own.logits(first), other.logits(second), first, f"{task!r} and {name!r}")
    return {name: total / len(examples) for name, total in totals.items()}


def _distance(one: Tensor, other: Tensor, batch: Any, whose: str) -> float:
    """Return the sum over the examples of a batch."""
    if one.shape != other.shape:
        raise RequestError(
            f"the experts {whose} give logits of shape {list(one.shape)} and {list(other.shape)} for the same "
            "examples; distances need the same outcomes (head, vocabulary)"
        )
    difference = torch.where(torch.isfinite(one) & torch.isfinite(other), one.double() - other.double(), 0.0)
    lengths = difference.norm(dim=-1)
    if lengths.ndim == 2:
        counted = counted_positions(batch, one)
        lengths = (lengths * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    return float(lengths.sum())
