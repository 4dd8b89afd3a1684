"""From a budget and a preference to the widths of a slimmable multi-task network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from consilience.errors import Problems, RequestError
from consilience.models.slimmable import SlimmableConfig, Widths

__all__ = ["Found", "WidthScores", "search_widths"]

WidthScores = Mapping[str, Mapping[tuple[float, float], float]]
"""Task -> (width of the encoder, width of the decoder) -> score on dev, higher is better."""


@dataclass(frozen=True)
class Found:
    """Widths, their cost in multiply-adds, their share of the full network, and the expected scores by task."""

    widths: Widths
    cost: int
    share: float
    expected: Mapping[str, float]


def search_widths(
    config: SlimmableConfig, scores: WidthScores, *, budget: float, preference: Mapping[str, float]
) -> Found:
    """Return the widths that serve a preference best within a budget.

    >>> config = SlimmableConfig(4, (8,), 8, {"a": 2, "b": 2}, (0.5, 1.0))
    >>> grid = {(e, d): e + d for e in config.choices for d in config.choices}
    >>> found = search_widths(config, {"a": grid, "b": grid}, budget=0.8, preference={"a": 3, "b": 1})
    >>> str(found.widths), found.share <= 0.8
    ('encoder 1, a 1, b 0.5', True)

    For every width of the encoder, decoders get the smallest width, then each the largest that its share of what is
    left pays for (wider with more preference), then what is still left goes to the most preferred first. The encoder's
    width is the one with the largest sum of preference times score.

    budget: share of the full network's multiply-adds, above 0. preference: task -> importance, brought to sum 1; 0
    leaves the task's decoder out. Raises RequestError for preferences that are negative, not finite, all zero or of
    other tasks, and for a budget below the smallest network that serves them, which is named.
    """
    shares = _normalised(config, preference)
    if not (math.isfinite(budget) and budget > 0):
        raise RequestError(f"budget is {budget}; it is a share of the full network's cost, above 0")
    whole = config.cost(config.full)
    limit = budget * whole
    served = [task for task, share in shares.items() if share]
    best: tuple[float, Widths] | None = None
    for encoder in config.choices:
        widths = _allotted(config, encoder, limit, shares, served)
        if widths is None:
            continue
        value = sum(shares[task] * scores[task][encoder, widths.decoders[task]] for task in served)
        if best is None or value > best[0]:
            best = value, widths
    if best is None:
        least = config.encoder_cost(config.choices[0])
        least += sum(config.decoder_cost(task, config.choices[0], config.choices[0]) for task in served)
        raise RequestError(
            f"budget {budget:g} is {limit:.0f} multiply-adds; the smallest network for {', '.join(served)} takes "
            f"{least}, {least / whole:.4f} of the full one"
        )
    expected = {task: scores[task][best[1].encoder, best[1].decoders[task]] for task in served}
    cost = config.cost(best[1])
    return Found(best[1], cost, cost / whole, expected)


def _normalised(config: SlimmableConfig, preference: Mapping[str, float]) -> dict[str, float]:
    problems = Problems()
    for task in preference:
        if task not in config.outputs:
            problems.add(f"task {task!r} is unknown; there are {', '.join(config.outputs)}")
    for task, value in preference.items():
        if not (math.isfinite(value) and value >= 0):
            problems.add(f"{task} is {value}; a preference is a number from 0 on")
    if not problems and not sum(preference.values()) > 0:
        problems.add("all preferences are 0; give at least one task some")
    problems.raise_if_any(RequestError, "preference")
    total = sum(preference.values())
    return {task: preference.get(task, 0.0) / total for task in config.outputs}


def _allotted(
    config: SlimmableConfig, encoder: float, limit: float, shares: Mapping[str, float], served: list[str]
) -> Widths | None:
    """Return the widths of the decoders at a width of the encoder, or None where the budget is too small."""
    least = config.choices[0]
    chosen = {task: least if share else 0.0 for task, share in shares.items()}

    def left() -> float:
        return limit - config.cost(Widths(encoder, chosen))

    rest = left()
    if rest < 0:
        return None
    for task in served:
        own = config.decoder_cost(task, encoder, least) + shares[task] * rest
        fitting = [width for width in config.choices if config.decoder_cost(task, encoder, width) <= own]
        chosen[task] = max(fitting)
    for task in sorted(served, key=lambda name: -shares[name]):
        for width in config.choices:
            more = config.decoder_cost(task, encoder, width) - config.decoder_cost(task, encoder, chosen[task])
            if 0 < more <= left():
                chosen[task] = width
    return Widths(encoder, chosen)
