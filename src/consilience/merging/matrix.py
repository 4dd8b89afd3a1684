"""Which tensors a matrix method takes, and what happens to the rest."""

from __future__ import annotations

import re
from typing import Any, Literal

from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.steps import Apply, Chunk, Selects, Statistics

__all__ = ["Rest", "matrices", "rest_steps"]

Rest = Literal["mean", "base"]


def matrices(include: str = "", exclude: str = "", ndim: int = 2) -> Selects:
    """Choose tensors of `ndim` axes whose name matches `include` (all when empty) and not `exclude`.

    >>> chosen = matrices(exclude=r".*embed|.*norm")
    >>> chosen("layers.0.mlp.weight", (4, 4)), chosen("embed.weight", (4, 4)), chosen("layers.0.bias", (4,))
    (True, False, False)

    Regular expressions match from the start of the name.
    """
    wanted, unwanted = re.compile(include), re.compile(exclude) if exclude else None

    def chosen(name: str, shape: tuple[int, ...]) -> bool:
        fits = len(shape) == ndim and wanted.match(name) is not None
        return fits and (unwanted is None or unwanted.match(name) is None)

    return chosen


def rest_steps(rest: Rest, count: int, scale: float) -> Apply:
    """Return what is done with the other tensors: base + scale * mean task vector, or the base as it is."""

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        if rest == "base":
            assert chunk.base is not None
            return chunk.base
        kernels().weighted_sum(chunk.deltas, chunk.numbers([1.0 / count] * count), chunk.out)
        kernels().add_base(chunk.out, chunk.base, scale)
        return chunk.out

    return apply
