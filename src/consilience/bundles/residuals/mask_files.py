"""Bits on disk: per expert one file with a bit per weight, each tensor packed (and coded) alone."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from consilience.core.atomic import storage_error
from consilience.core.hashing import xxh3_hex
from consilience.errors import StorageError, VerificationError

__all__ = ["Coding", "MaskCoder", "MaskFile", "entry_holds"]

Coding = Literal["zlib", "packed"]


class MaskCoder:
    """Packs bits, codes the bytes and appends them to a file, counting what it wrote.

    >>> import io
    >>> coder = MaskCoder(io.BytesIO(), "packed")
    >>> coder.add(np.array([True, False, True]))
    >>> coder.close()[0], coder.close()[2]
    (1, 2)
    """

    def __init__(self, file: BinaryIO, coding: str) -> None:
        self.file = file
        # runs of equal bytes and their frequencies are all that a mask offers; a search for repeats finds none
        self.code = zlib.compressobj(strategy=zlib.Z_RLE) if coding == "zlib" else None
        self.digest = xxhash.xxh3_64()
        self.bytes = self.ones = 0

    def add(self, mask: NDArray[np.bool_]) -> None:
        """Append bits; every part but the last of a tensor has a multiple of 8."""
        self.ones += int(np.count_nonzero(mask))
        packed = np.packbits(mask).tobytes()
        self._write(self.code.compress(packed) if self.code is not None else packed)

    def close(self) -> list[Any]:
        """End a tensor: return its bytes, checksum and number of bits set."""
        if self.code is not None:
            self._write(self.code.flush())
            self.code = None
        return [self.bytes, self.digest.hexdigest(), self.ones]

    def _write(self, data: bytes) -> None:
        try:
            self.file.write(data)
        except OSError as error:
            raise storage_error(Path(self.file.name), error) from error
        self.digest.update(data)
        self.bytes += len(data)


def entry_holds(file: BinaryIO, start: int, entry: Sequence[Any]) -> bool:
    """Whether the bytes at `start` are those that an entry (bytes, checksum, ones) speaks of."""
    file.seek(start)
    return bool(xxh3_hex(file.read(entry[0])) == entry[1])


class MaskFile:
    """The bits of one expert, read tensor by tensor.

    `entries` maps each tensor, in the order of the file, to (bytes, checksum, ones).
    """

    def __init__(self, path: Path, entries: Mapping[str, Sequence[Any]], coding: str) -> None:
        self.path, self.entries, self.coding = path, entries, coding
        self.starts: dict[str, int] = {}
        start = 0
        for name, entry in entries.items():
            self.starts[name] = start
            start += int(entry[0])

    def packed(self, name: str) -> NDArray[np.uint8]:
        """Return the bits of a tensor, 8 to a byte. Raises VerificationError where they are not as written."""
        size, checksum, _ = self.entries[name]
        try:
            with self.path.open("rb") as file:
                file.seek(self.starts[name])
                coded = file.read(size)
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror or error}") from error
        if len(coded) != size or xxh3_hex(coded) != checksum:
            raise VerificationError(f"{self.path}: the mask of tensor {name!r} is not as it was written")
        return np.frombuffer(zlib.decompress(coded) if self.coding == "zlib" else coded, np.uint8)
