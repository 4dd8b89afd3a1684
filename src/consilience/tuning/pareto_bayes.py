"""Where to evaluate next: more points in the directions in which a surrogate is wrong or unsure.

Source: the Bayesian variant of MAP, ICLR 2025 (arXiv 2406.07529). Two things are said differently here: directions
without any point count as much as the worst known one, so that they are explored, and every random drop leaves out a
fifth of all points.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from consilience.errors import RequestError

__all__ = ["MOST_EXPERTS", "bin_scores", "bins_per_angle", "propose", "to_angles", "to_coefficients"]

Array = NDArray[np.float64]

MOST_EXPERTS = 6
_DROPS, _SHARE = 30, 0.2
_DOUBT = 0.5  # weight of the mean's standard deviation
_TEMPERATURE = 0.07
_RADII = (0.2, 0.8)
_LARGEST = 1.5


def bins_per_angle(experts: int) -> int:
    """Return into how many bins each angle is cut: 4 below four experts, else 2."""
    return 4 if experts < 4 else 2


def to_angles(points: Array) -> Array:
    """Return the angles (N, E - 1), 0 to pi/2, of coefficients (N, E) that are 0 or more.

    >>> to_angles(np.array([[1.0, 0.0], [0.0, 2.0]])).tolist()
    [[0.0], [1.5707963267948966]]
    """
    beyond = np.sqrt(np.cumsum((points**2)[:, ::-1], axis=1)[:, ::-1])[:, 1:]
    return np.asarray(np.arctan2(beyond, points[:, :-1]), np.float64)


def to_coefficients(radius: Array, angles: Array) -> Array:
    """Return coefficients (N, E) of a radius (N,) and angles (N, E - 1)."""
    sines = np.cumprod(np.sin(angles), axis=1)
    first = np.hstack([np.ones((len(angles), 1)), sines])
    last = np.hstack([np.cos(angles), np.ones((len(angles), 1))])
    return np.asarray(radius[:, None] * first * last, np.float64)


def bin_scores(points: Array, errors: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """Return the lower corners (B, E - 1) of all bins, in numbers of bins, and the score (B,) of each.

    errors: squared errors (N,) of the surrogate at the points. The score is the mean error in a bin plus half the
    standard deviation of that mean over 30 random drops of a fifth of the points.
    """
    experts = points.shape[1]
    count = bins_per_angle(experts)
    corners = np.array(list(product(range(count), repeat=experts - 1)), np.float64)
    places = np.minimum((to_angles(points) / (np.pi / 2) * count).astype(np.int64), count - 1)
    index = np.ravel_multi_index(tuple(places.T), (count,) * (experts - 1))
    sizes = np.bincount(index, minlength=len(corners))
    means = np.bincount(index, errors, len(corners)) / np.maximum(sizes, 1)
    kept_count = max(len(points) - int(_SHARE * len(points)), 1)
    drawn = []
    for _ in range(_DROPS):
        kept = random.permutation(len(points))[:kept_count]
        found = np.bincount(index[kept], minlength=len(corners))
        sums = np.bincount(index[kept], errors[kept], len(corners))
        drawn.append(np.where(found > 0, sums / np.maximum(found, 1), means))
    scores = means + _DOUBT * np.std(drawn, axis=0)
    return corners, np.where(sizes > 0, scores, scores[sizes > 0].max())


def propose(points: Array, errors: Array, count: int, random: np.random.Generator) -> Array:
    """Return `count` new coefficient vectors (count, E), drawn towards bins of angles with high scores.

    >>> random = np.random.default_rng(0)
    >>> points = np.array([[1.0, 0.1], [0.1, 1.0]])
    >>> new = propose(points, np.array([0.0, 1.0]), 200, random)
    >>> new.shape, bool((new[:, 1] > new[:, 0]).mean() > 0.5)
    ((200, 2), True)

    The angle is uniform in its bin, the radius uniform in [0.2, 0.8], coefficients are within [0, 1.5]. Raises
    RequestError for fewer than 2 or more than 6 experts.
    """
    experts = points.shape[1]
    if not 2 <= experts <= MOST_EXPERTS:
        raise RequestError(f"the Bayesian variant is for 2 to {MOST_EXPERTS} experts, not {experts}; use map or nested")
    corners, scores = bin_scores(points, errors, random)
    weights = np.exp((scores - scores.max()) / _TEMPERATURE)
    chosen = random.choice(len(corners), size=count, p=weights / weights.sum())
    width = np.pi / 2 / bins_per_angle(experts)
    angles = (corners[chosen] + random.random((count, experts - 1))) * width
    radius = _RADII[0] + (_RADII[1] - _RADII[0]) * random.random(count)
    return np.clip(to_coefficients(radius, angles), 0, _LARGEST)
