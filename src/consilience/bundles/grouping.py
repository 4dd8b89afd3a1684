"""Inputs whose weights are the same, so that one model serves them together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["weight_groups"]


def weight_groups(
    weights: NDArray[np.float64], decimals: int = 2
) -> Iterator[tuple[tuple[float, ...], NDArray[np.int64]]]:
    """Yield each set of weights that occurs, rounded, and the inputs that have it, in their order.

    >>> [(found, rows.tolist()) for found, rows in weight_groups(np.array([[0.501, 0.5], [1, 0], [0.499, 0.502]]))]
    [((0.5, 0.5), [0, 2]), ((1.0, 0.0), [1])]

    Rounding changes a model's weights by at most half a unit of the last decimal times its task vectors.
    """
    rounded = np.round(np.asarray(weights, np.float64), decimals) + 0.0  # no minus zero
    groups: dict[tuple[float, ...], list[int]] = {}
    for row, values in enumerate(rounded.tolist()):
        groups.setdefault(tuple(values), []).append(row)
    for found, rows in groups.items():
        yield found, np.array(rows, np.int64)
