"""Immutable files of arrays that are mapped into memory, each with its size and checksum."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.core.atomic import storage_error, sync_folder
from consilience.core.hashing import file_xxh3
from consilience.errors import VerificationError

__all__ = ["Arrays", "folder_bytes", "open_segment", "remove_segment", "write_segment"]

Arrays = Mapping[str, NDArray[Any]]

_HEADER = 128  # bytes before the values


def write_segment(folder: Path, name: str, arrays: Arrays) -> dict[str, Any]:
    """Write arrays as `NAME.ARRAY.npy`, durable when this returns, and return the sizes and checksums of the files.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> files = write_segment(folder, "000001", {"numbers": np.arange(3)})
    >>> open_segment(folder, "000001", files)["numbers"].tolist()
    [0, 1, 2]

    Raises StorageError when the disk is full; what was written of the segment is deleted.
    """
    files = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for array, values in arrays.items():
            path = folder / f"{name}.{array}.npy"
            with path.open("wb") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            files[array] = {"bytes": path.stat().st_size, "xxh3": file_xxh3(path)}
        sync_folder(folder)
    except OSError as error:
        remove_segment(folder, name)
        raise storage_error(folder / name, error) from error
    return files


def open_segment(
    folder: Path, name: str, files: Mapping[str, Mapping[str, Any]], *, verify: bool = True
) -> dict[str, NDArray[Any]]:
    """Map the arrays of a segment, read-only.

    Raises FileNotFoundError where a file is gone, and VerificationError naming each that is not as it was written.
    """
    wrong, found = [], {}
    for array, facts in files.items():
        path = folder / f"{name}.{array}.npy"
        size = path.stat().st_size
        if size != facts["bytes"]:
            wrong.append(f"{path} has {size} bytes, {facts['bytes']} were written")
        elif verify and file_xxh3(path) != facts["xxh3"]:
            wrong.append(f"{path} has another checksum than when it was written")
        else:
            empty = size <= _HEADER  # a file cannot be mapped from its end on
            values = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
            found[array] = values.view(np.ndarray)  # numpy is slower with its own class of mapped arrays
    if wrong:
        raise VerificationError("; ".join(wrong) + ": restore the file from a copy, or index again")
    return found


def remove_segment(folder: Path, name: str) -> None:
    """Delete the files of a segment; who has them mapped can go on reading."""
    for path in folder.glob(f"{name}.*.npy"):
        path.unlink(missing_ok=True)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder; what a writer deletes meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
