"""The steps of contrastive training: which texts go through the encoder together, and their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from consilience.core.progress import Progress
from consilience.core.randomness import stream_key
from consilience.models.batching import Tokens
from consilience.models.encoder import DenseEncoder
from consilience.training.batches import Batches
from consilience.training.fitting import TrainingState, fit
from consilience.training.loss import in_batch_negatives
from consilience.training.settings import Settings

__all__ = ["embed", "embed_with_middle", "pair_loss", "run_steps"]

_PASS_TOKENS = {"cpu": 512}


def embed(encoder: DenseEncoder, tokens: Tokens, rows: NDArray[np.int64]) -> Tensor:
    """Return the vectors of `rows` with gradients: passes of similar length, so that little is spent on padding."""
    parts, back = _passes(encoder, tokens, rows)
    return torch.cat([encoder.forward(tokens, rows=part) for part in parts])[back]


def embed_with_middle(encoder: DenseEncoder, tokens: Tokens, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return the vectors of `rows` and their pooled states of the middle layer, with gradients."""
    parts, back = _passes(encoder, tokens, rows)
    vectors, middle = zip(*(encoder.forward_with_middle(tokens, rows=part) for part in parts), strict=True)
    return torch.cat(vectors)[back], torch.cat(middle)[back]


def _passes(encoder: DenseEncoder, tokens: Tokens, rows: NDArray[np.int64]) -> tuple[list[NDArray[np.int64]], Tensor]:
    """Return the rows of each pass, longest first, and the places that put the results back in order."""
    lengths = tokens.lengths[rows]
    order = np.argsort(-lengths, kind="stable")
    budget = _PASS_TOKENS.get(encoder.device.type, 1 << 20)
    parts, start = [], 0
    while start < len(order):
        count = max(1, budget // int(lengths[order[start]]))
        parts.append(rows[order[start : start + count]])
        start += count
    return parts, torch.from_numpy(np.argsort(order, kind="stable")).to(encoder.device)


def pair_loss(encoder: DenseEncoder, batches: Batches, settings: Settings) -> Callable[[int], tuple[Tensor, int]]:
    """Return the loss of a step on (query, relevant document) pairs, and the number of tokens it took."""
    tokens = encoder.tokenise(batches.queries + batches.documents)

    def loss_at(step: int) -> tuple[Tensor, int]:
        batch = batches.at(step)
        rows = np.concatenate([batch[:, 0], batch[:, 1] + len(batches.queries)])
        if settings.dropout:  # a function of (seed, step), so that a resumed run drops the same units
            torch.manual_seed(stream_key(settings.seed, "dropout", str(step)) >> 1)
        vectors = embed(encoder, tokens, rows)
        relevant = torch.from_numpy(batches.relevant(batch)).to(vectors.device)
        loss = in_batch_negatives(vectors[: len(batch)], vectors[len(batch) :], relevant, scale=settings.scale)
        return loss, int(tokens.lengths[rows].sum())

    return loss_at


def run_steps(
    loss_at: Callable[[int], tuple[Tensor, int]],
    encoder: DenseEncoder,
    parameters: Mapping[str, nn.Parameter],
    settings: Settings,
    *,
    state_file: Path,
    state_every: int,
    after_step: Callable[[TrainingState], None],
    check: Callable[[], None],
    progress: Progress,
) -> TrainingState:
    """Run `fit` with the encoder in training mode where the settings ask for dropout."""
    encoder.stack.train(settings.dropout)
    state = fit(
        loss_at,
        parameters,
        settings,
        state_file=state_file,
        state_every=state_every,
        after_step=after_step,
        check=check,
        progress=progress,
    )
    encoder.stack.eval()
    return state
