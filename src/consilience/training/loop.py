"""The training loop: steps of AdamW on a contrastive loss, resumable after any step whose state was saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from consilience.core.progress import Progress
from consilience.core.randomness import stream_key
from consilience.errors import WorkError
from consilience.models.batching import Tokens
from consilience.models.encoder import DenseEncoder
from consilience.training.batches import Batches
from consilience.training.loss import in_batch_negatives
from consilience.training.settings import Settings
from consilience.training.state import load_state, save_state

__all__ = ["TrainingState", "learning_rate_at", "train"]

_PASS_TOKENS = {"cpu": 512}


@dataclass
class TrainingState:
    """Where a run stands: finished steps, the loss of each, seconds and tokens spent on them."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0


def learning_rate_at(step: int, steps: int, *, top: float, schedule: str, warmup: float) -> float:
    """Return the learning rate of a step (0, 1, ...): linear warm-up, then linear to zero or constant.

    >>> [round(learning_rate_at(step, 10, top=1.0, schedule="linear", warmup=0.2), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    rising = max(1, round(steps * warmup)) if warmup else 0
    if step < rising:
        return top * (step + 1) / rising
    if schedule == "constant":
        return top
    return top * (steps - step) / max(1, steps - rising)


def embed(encoder: DenseEncoder, tokens: Tokens, rows: NDArray[np.int64]) -> Tensor:
    """Return the vectors of `rows` with gradients: passes of similar length, so that little is spent on padding."""
    lengths = tokens.lengths[rows]
    order = np.argsort(-lengths, kind="stable")
    budget = _PASS_TOKENS.get(encoder.device.type, 1 << 20)
    parts, start = [], 0
    while start < len(order):
        count = max(1, budget // int(lengths[order[start]]))
        parts.append(encoder.forward(tokens, rows=rows[order[start : start + count]]))
        start += count
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(encoder.device)
    return torch.cat(parts)[back]


def train(
    encoder: DenseEncoder,
    parameters: Mapping[str, nn.Parameter],
    batches: Batches,
    settings: Settings,
    *,
    state_file: Path,
    state_every: int,
    after_step: Callable[[TrainingState], None],
    check: Callable[[], None],
    progress: Progress,
) -> TrainingState:
    """Run the steps that are not yet done and return the final state; `parameters` change in place.

    after_step is called after every step, before its state is saved, so what it writes is never behind the state;
    check is called once the state is saved and may raise to stop.
    Raises WorkError naming the step when the loss or a gradient is not finite.
    """
    optimizer = torch.optim.AdamW(
        list(parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    saved = load_state(state_file, parameters, optimizer)
    state = TrainingState(**saved) if saved else TrainingState()
    progress.skip(state.step)
    tokens = encoder.tokenise(batches.queries + batches.documents)
    encoder.stack.train(settings.dropout)
    while state.step < settings.steps:
        started = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(
                state.step,
                settings.steps,
                top=settings.learning_rate,
                schedule=settings.schedule,
                warmup=settings.warmup,
            )
        loss, used = _step(encoder, tokens, parameters, batches, settings, state.step, optimizer)
        state.losses.append(loss)
        state.tokens += used
        state.step += 1
        state.seconds += time.monotonic() - started
        after_step(state)
        if state.step % state_every == 0 or state.step == settings.steps:
            save_state(state_file, parameters, optimizer, vars(state))
        check()
        progress.advance(1)
    encoder.stack.eval()
    return state


def _step(
    encoder: DenseEncoder,
    tokens: Tokens,
    parameters: Mapping[str, nn.Parameter],
    batches: Batches,
    settings: Settings,
    step: int,
    optimizer: torch.optim.Optimizer,
) -> tuple[float, int]:
    batch = batches.at(step)
    rows = np.concatenate([batch[:, 0], batch[:, 1] + len(batches.queries)])
    if settings.dropout:  # a function of (seed, step), so that a resumed run drops the same units
        torch.manual_seed(stream_key(settings.seed, "dropout", str(step)) >> 1)
    vectors = embed(encoder, tokens, rows)
    relevant = torch.from_numpy(batches.relevant(batch)).to(vectors.device)
    loss = in_batch_negatives(vectors[: len(batch)], vectors[len(batch) :], relevant, scale=settings.scale)
    value = loss.item()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip).item()
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise WorkError(
            f"step {step + 1} of {settings.steps}: the loss is {value:g}, the gradient's norm {norm:g} "
            f"(learning rate {optimizer.param_groups[0]['lr']:g}); nothing was published. "
            "Use a smaller learning rate, and check the base model's weights"
        )
    optimizer.step()
    return value, int(tokens.lengths[rows].sum())
