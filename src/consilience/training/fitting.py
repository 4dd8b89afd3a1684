"""Steps of AdamW on any loss: the schedule, the clipped gradient, the saved state; the same on resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from consilience.core.progress import Progress
from consilience.errors import WorkError
from consilience.training.state import load_state, save_state

__all__ = ["FitSettings", "TrainingState", "fit", "learning_rate_at"]


class FitSettings(Protocol):
    """What the loop needs to know; the meaning of each is that of `train_encoder`."""

    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def learning_rate(self) -> float: ...  # noqa: D102
    @property
    def schedule(self) -> str: ...  # noqa: D102
    @property
    def warmup(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def clip(self) -> float: ...  # noqa: D102


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


def fit(
    loss_at: Callable[[int], tuple[Tensor, int]],
    parameters: Mapping[str, nn.Parameter],
    settings: FitSettings,
    *,
    state_file: Path | None = None,
    state_every: int = 20,
    after_step: Callable[[TrainingState], None] | None = None,
    check: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> TrainingState:
    """Run the steps that are not yet done and return the final state; `parameters` change in place.

    loss_at(step) gives the loss of a step (0, 1, ...) and the number of tokens it took; it has to be a function of the
    step and the parameters alone, so that a resumed run repeats it. state_file: where the state is kept, every
    `state_every` steps; None keeps none. after_step is called after every step, before its state is saved, so what it
    writes is never behind the state; check is called once the state is saved and may raise to stop.
    Raises WorkError naming the step when the loss or a gradient is not finite.
    """
    optimizer = torch.optim.AdamW(
        list(parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    saved = load_state(state_file, parameters, optimizer) if state_file is not None else None
    state = TrainingState(**saved) if saved else TrainingState()
    if progress is not None:
        progress.skip(state.step)
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
        loss, used = loss_at(state.step)
        state.losses.append(_update(loss, parameters, optimizer, settings, state.step))
        state.tokens += used
        state.step += 1
        state.seconds += time.monotonic() - started
        if after_step is not None:
            after_step(state)
        if state_file is not None and (state.step % state_every == 0 or state.step == settings.steps):
            save_state(state_file, parameters, optimizer, vars(state))
        if check is not None:
            check()
        if progress is not None:
            progress.advance(1)
    return state


def _update(
    loss: Tensor,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: FitSettings,
    step: int,
) -> float:
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
    return value
