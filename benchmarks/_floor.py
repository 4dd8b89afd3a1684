"""The floor of any merge: read every input once, write an output of the size of one. Run as a process of its own.

`python _floor.py OUTPUT SIZE INPUT...` reads the safetensors files of the input folders and writes SIZE bytes.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

_BLOCK = 1 << 19  # the cheapest size on the machines tried: larger blocks leave the processor's cache


def main(output: str, size: int, inputs: list[str]) -> None:
    """Read, write, and remove what was written. Nothing is synced to the disk."""
    buffer = memoryview(mmap.mmap(-1, _BLOCK))  # page-aligned: copies to other addresses can be 3 times slower
    for folder in inputs:
        for path in sorted(Path(folder).glob("*.safetensors")):
            number = os.open(path, os.O_RDONLY)
            while os.readv(number, [buffer]):
                pass
            os.close(number)
    number = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.posix_fallocate(number, 0, size)
    left = size
    while left:
        left -= os.write(number, buffer[: min(_BLOCK, left)])
    os.close(number)
    Path(output).unlink()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
