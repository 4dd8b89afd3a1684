"""Greedy selection: plain, lazy, and under a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from consilience.retrieval.selection.protocol import Objective

__all__ = ["best_set", "budgeted", "greedy", "set_value"]

Picks = list[tuple[int, float]]

_FIRST_BLOCK = 16


def greedy(objective: Objective, count: int, k: int, *, lazy: bool | None = None) -> Picks:
    """Return up to `k` of `count` candidates with their gains, each time the one that adds most.

    >>> from consilience.retrieval.selection.methods.top_k import top_k
    >>> from consilience.retrieval.selection.protocol import Candidates
    >>> greedy(top_k(Candidates(np.eye(3), np.array([0.2, 0.9, 0.9]))), 3, 2)
    [(1, 0.9), (2, 0.9)]

    Equal gains (within the objective's tolerance): the lower index. lazy: re-evaluate only candidates whose old gain
    could still win, which gives the same picks for a submodular objective (the default there). Source: Minoux 1978.
    """
    return _run(objective, objective.gains(np.arange(count)), np.ones(count), math.inf, k, _is_lazy(objective, lazy))


def budgeted(
    build: Callable[[], Objective],
    costs: NDArray[np.float64],
    budget: float,
    k: int,
    *,
    lazy: bool | None = None,
) -> Picks:
    """Return candidates of at most `budget` in all: the better of greedy by gain per cost and the best single one.

    >>> from consilience.retrieval.selection.methods.top_k import top_k
    >>> from consilience.retrieval.selection.protocol import Candidates
    >>> candidates = Candidates(np.eye(3), np.array([0.2, 0.9, 0.8]))
    >>> budgeted(lambda: top_k(candidates), np.array([1.0, 9.0, 4.0]), 5.0, 3)
    [(0, 0.2), (2, 0.8)]

    build: makes the objective, monotone and submodular, with nothing chosen. What adds nothing is not bought. The value
    is at least 1 - 1/sqrt(e), 39 %, of the best affordable set. Sources: Khuller, Moss and Naor 1999; Lin and Bilmes
    2010.
    """
    objective = build()
    first = objective.gains(np.arange(len(costs)))
    affordable = np.flatnonzero(costs <= budget)
    if len(affordable) == 0 or k == 0:
        return []
    single = int(affordable[np.argmax(first[affordable])])
    picks = _run(objective, first.copy(), costs, budget, k, _is_lazy(objective, lazy))
    if first[single] > sum(gain for _, gain in picks) + objective.tolerance:
        return [(single, float(first[single]))]
    return picks


def set_value(objective: Objective, chosen: Iterable[int]) -> float:
    """Return the value of a set: what its members add, one after the other, to a fresh objective."""
    total = 0.0
    for row in chosen:
        total += float(objective.gains(np.array([row]))[0])
        objective.add(row)
    return total


def best_set(build: Callable[[], Objective], count: int, k: int) -> tuple[tuple[int, ...], float]:
    """Return the best set of `k` by trying all, and its value: what greedy selection is measured against.

    >>> from consilience.retrieval.selection.methods.top_k import top_k
    >>> from consilience.retrieval.selection.protocol import Candidates
    >>> best_set(lambda: top_k(Candidates(np.eye(3), np.array([0.25, 0.5, 0.5]))), 3, 2)
    ((1, 2), 1.0)
    """
    tried = {chosen: set_value(build(), chosen) for chosen in combinations(range(count), k)}
    best = max(tried, key=lambda chosen: tried[chosen])
    return best, tried[best]


def _is_lazy(objective: Objective, lazy: bool | None) -> bool:
    return objective.submodular if lazy is None else lazy


def _run(
    objective: Objective, bound: NDArray[np.float64], costs: NDArray[np.float64], budget: float, k: int, lazy: bool
) -> Picks:
    """Choose; `bound` has the gains of all candidates for an empty set and is used up."""
    free = np.ones(len(bound), np.bool_)
    fresh = np.ones(len(bound), np.bool_)
    left = budget * (1 + 1e-12)
    picks: Picks = []
    while len(picks) < k:
        free &= costs <= left
        if not free.any():
            break
        index = _best(objective, bound, costs, free, fresh, lazy)
        gain = float(bound[index])
        if budget < math.inf and gain <= objective.tolerance:
            break
        picks.append((index, gain))
        objective.add(index)
        left -= costs[index] if budget < math.inf else 0.0
        free[index] = False
        fresh[:] = False
    return picks


def _best(
    objective: Objective,
    bound: NDArray[np.float64],
    costs: NDArray[np.float64],
    free: NDArray[np.bool_],
    fresh: NDArray[np.bool_],
    lazy: bool,
) -> int:
    """Return the free candidate with the largest gain per cost; evaluates in blocks what is not fresh."""
    tolerance = objective.tolerance
    known = free & fresh
    best = float((bound[known] / costs[known]).max()) if known.any() else -math.inf
    size = _FIRST_BLOCK
    while True:
        stale = free & ~fresh
        if lazy:
            stale &= bound >= best * costs - 2 * tolerance
        rows = np.flatnonzero(stale)
        if len(rows) == 0:
            break
        if lazy and len(rows) > size:
            ratios = bound[rows] / costs[rows]
            rows = np.sort(rows[np.argpartition(-ratios, size - 1)[:size]])
            size *= 2
        bound[rows] = objective.gains(rows)
        fresh[rows] = True
        best = max(best, float((bound[rows] / costs[rows]).max()))
    return int(np.flatnonzero(free & fresh & (bound >= best * costs - tolerance))[0])
