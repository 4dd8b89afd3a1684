"""A source rounded to another type when it is read, as recipes in mergekit's language ask with `dtype`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import DTYPES, decode, encode
from consilience.checkpoints.sources import Source, Stored

__all__ = ["Cast"]


@dataclass(frozen=True)
class Cast:
    """`source` rounded to `dtype`."""

    source: Source
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's shape."""
        return self.source.shape

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.source.numel

    @property
    def nbytes(self) -> int:
        """Size in the new type."""
        return self.numel * DTYPES[self.dtype].itemsize

    def read_raw(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) rounded to the type."""
        values = np.empty(stop - start, np.float64)
        self.source.read(start, stop, values)
        raw = np.empty(stop - start, DTYPES[self.dtype].storage)
        encode(values, self.dtype, raw)
        return raw

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Write the rounded values to `out`."""
        decode(self.read_raw(start, stop), self.dtype, out)

    def inputs(self) -> tuple[Stored, ...]:
        """Return what is read from disk."""
        return self.source.inputs()
