"""Where the numbers of a tensor come from: a range of bytes in a file, or such a range plus a low-rank change.

A source is plain data: picklable, comparable, without open files. Numbers are read when asked for, any range of
elements at a time, by any number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import DTYPES, decode, encode, working_dtype
from consilience.checkpoints.factors import factors
from consilience.checkpoints.files import read_into

__all__ = ["LowRank", "Source", "Stored"]

_DECODE_BLOCK = 1 << 18
_PRODUCT_BLOCK = 1 << 15


class Source(Protocol):
    """A tensor that can be read piece by piece, in C order.

    `read` writes the exact values of elements [start, stop) to `out` (1-D, float32 or float64); `read_raw` returns
    them as they are, or would be, stored (1-D, storage type of `dtype`); `inputs` names every range of a file behind.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""
        ...

    @property
    def dtype(self) -> str:
        """Number type, a safetensors name."""
        ...

    @property
    def numel(self) -> int:
        """Number of elements."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes when stored."""
        ...

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode elements [start, stop) into `out`."""
        ...

    def read_raw(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) as stored."""
        ...

    def inputs(self) -> tuple[Stored, ...]:
        """Return the ranges of files behind this tensor."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in a file: `offset` is the position of its first byte in the file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "numbers"
    >>> _ = path.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    >>> tensor, out = Stored(path, 0, "F32", (2, 2)), np.empty(2, np.float64)
    >>> tensor.read(1, 3, out)
    >>> out.tolist()
    [1.0, 2.0]

    Reads are positional and never map the file. Raises StorageError when the file is gone or became shorter.
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def read_raw_into(self, start: int, stop: int, buffer: NDArray[Any]) -> None:
        """Fill `buffer` (1-D, contiguous, storage type, stop - start elements) with elements [start, stop)."""
        itemsize = DTYPES[self.dtype].itemsize
        _require_range(self, start, stop, buffer)
        if stop > start:
            read_into(self.path, self.offset + start * itemsize, memoryview(buffer.data).cast("B"))

    def read_raw(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) in their storage type."""
        buffer = np.empty(stop - start, DTYPES[self.dtype].storage)
        self.read_raw_into(start, stop, buffer)
        return buffer

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode elements [start, stop) into `out` (1-D, float32 or float64)."""
        _require_range(self, start, stop, out)
        storage = DTYPES[self.dtype].storage
        if out.dtype == storage and out.flags.c_contiguous:
            self.read_raw_into(start, stop, out)
            return
        raw = np.empty(min(stop - start, _DECODE_BLOCK), storage)
        for first in range(start, stop, _DECODE_BLOCK):
            last = min(first + _DECODE_BLOCK, stop)
            part = raw[: last - first]
            self.read_raw_into(first, last, part)
            decode(part, self.dtype, out[first - start : last - start])

    def inputs(self) -> tuple[Stored, ...]:
        """Return itself."""
        return (self,)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A tensor plus a low-rank change: W + scale * (B @ A), the weights of a model with a LoRA adapter.

    `a` is (rank, in...) and `b` (out, rank, 1...); the product takes W's shape. With `fan_in_fan_out` W is stored
    as (in, out), as GPT-2's linear layers and embeddings with LoRA are, and the product is transposed.

    Sums run over the rank in ascending order in the type of `out`, element by element, so any cut into ranges gives
    the same bits. Source: Hu et al., LoRA, arXiv 2106.09685.
    """

    base: Source
    a: Stored
    b: Stored
    scale: float
    fan_in_fan_out: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""
        return self.base.shape

    @property
    def dtype(self) -> str:
        """Number type of the changed tensor, that of W."""
        return self.base.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.base.numel

    @property
    def nbytes(self) -> int:
        """Bytes when stored."""
        return self.base.nbytes

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Compute elements [start, stop) into `out` (1-D, float32 or float64)."""
        self.base.read(start, stop, out)
        if stop == start:
            return
        left, right = factors(self.a, self.b, self.fan_in_fan_out, out.dtype.type)
        scale = out.dtype.type(self.scale)
        columns = right.shape[1]
        rows = max(1, _PRODUCT_BLOCK // columns)
        for row in range(start // columns, -(-stop // columns), rows):
            last = min(row + rows, -(-stop // columns))
            change = _product(left[row:last], right)
            change *= scale
            begin, end = max(start, row * columns), min(stop, last * columns)
            out[begin - start : end - start] += change.reshape(-1)[begin - row * columns : end - row * columns]

    def read_raw(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) rounded to the type of W."""
        values = np.empty(stop - start, working_dtype([self.dtype]))
        self.read(start, stop, values)
        raw = np.empty(stop - start, DTYPES[self.dtype].storage)
        encode(values, self.dtype, raw)
        return raw

    def inputs(self) -> tuple[Stored, ...]:
        """Return the ranges of files behind W, A and B."""
        return (*self.base.inputs(), self.a, self.b)


def _product(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Return left @ right, each element summed over the rank in ascending order (no reordering by a matrix library)."""
    total = np.zeros((left.shape[0], right.shape[1]), left.dtype)
    term = np.empty_like(total)
    for k in range(right.shape[0]):
        np.multiply(left[:, k : k + 1], right[k], out=term)
        total += term
    return total


def _require_range(source: Source, start: int, stop: int, out: NDArray[Any]) -> None:
    if not 0 <= start <= stop <= source.numel or out.shape != (stop - start,):
        raise ValueError(
            f"elements [{start}, {stop}) of {source.numel} into an array of shape {out.shape}: the range must lie "
            "within the tensor and the array must be 1-D of its length"
        )
