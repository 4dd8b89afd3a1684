"""Which examples a step takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import DataError

__all__ = ["Order"]


class Order:
    """Which examples a step takes: an epoch is a permutation, its remainder is left out.

    >>> order = Order("tiny", 5, size=2, seed=0)
    >>> len({*order.at(0).tolist(), *order.at(1).tolist()})
    4

    A function of (seed, name, step) alone. Raises DataError where a batch is larger than the data.
    """

    def __init__(self, name: str, count: int, *, size: int, seed: int) -> None:
        self.name, self.count, self.size, self.seed = name, count, size, seed
        if size > count:
            raise DataError(f"{name}: the batch is {size}, but there are only {count} training examples")

    def at(self, step: int) -> NDArray[np.int64]:
        """Return the positions of the examples of a step (0, 1, ...)."""
        epoch, place = divmod(step, self.count // self.size)
        draws = uniform_bits(stream_key(self.seed, "order", self.name, str(epoch)), 0, self.count)
        return np.argsort(draws, kind="stable")[place * self.size : (place + 1) * self.size]
