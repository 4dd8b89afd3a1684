"""Which coefficients to evaluate: every expert alone, then distinct points of a grid on the box [0, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import stream_key
from consilience.errors import RequestError

__all__ = ["random_coefficients", "sample_coefficients"]

_LEVELS = 11  # values of one coefficient: 0, 0.1, ..., 1
_JITTER = 0.1  # standard deviation of jittered corners


def sample_coefficients(
    experts: int, count: int, *, seed: int = 0, isotropic: int = 0, jittered: int = 0
) -> NDArray[np.float64]:
    """Return `count` distinct coefficient vectors in [0, 1], float64 (count, experts): the corners first.

    >>> points = sample_coefficients(2, 8)
    >>> points.shape, points[:2].tolist()
    ((8, 2), [[1.0, 0.0], [0.0, 1.0]])

    The corners (one expert alone) are always there. `isotropic` points have equal coefficients, `jittered` ones are
    corners moved by normal noise of 0.1; the rest is drawn from the grid 0, 0.1, ..., 1 without points of these two
    kinds. For one expert the points are spread evenly. A function of the arguments and `seed` only. Raises
    RequestError where `count` is too small for what was asked.

    Source: MAP, ICLR 2025 (arXiv 2406.07529).
    """
    least = experts + isotropic + jittered
    if experts < 1 or count < max(least, 1):
        raise RequestError(
            f"{count} coefficient vectors of {experts} experts: at least {least} are needed ({experts} corners, "
            f"{isotropic} isotropic, {jittered} jittered); raise the budget"
        )
    if experts == 1:
        return np.linspace(1, 0, count)[:, None]
    random = np.random.Generator(np.random.Philox(stream_key(seed, "pareto sampling")))
    corners = np.eye(experts)
    equal = np.repeat(np.linspace(0, 1, isotropic + 1)[1:, None], experts, axis=1)
    moved = corners[np.arange(jittered) % experts] + _JITTER * random.standard_normal((jittered, experts))
    rest = count - least
    levels = _LEVELS
    while levels**experts - levels - experts < rest:
        levels = 2 * levels - 1
    drawn = dict[tuple[int, ...], None]()
    while len(drawn) < rest:
        for row in random.integers(levels, size=(rest, experts)).tolist():
            alone = max(row) == levels - 1 and sum(value > 0 for value in row) == 1
            if len(set(row)) > 1 and not alone and len(drawn) < rest:
                drawn.setdefault(tuple(row))
    grid = np.array(list(drawn), np.float64).reshape(rest, experts) / (levels - 1)
    return np.concatenate([corners, equal, np.clip(moved, 0, 1), grid])


def random_coefficients(experts: int, count: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Return uniform draws from [0, 1], float64 (count, experts): the search that a front is compared with.

    >>> random_coefficients(3, 5).shape
    (5, 3)
    """
    random = np.random.Generator(np.random.Philox(stream_key(seed, "pareto random")))
    return random.random((count, experts))
