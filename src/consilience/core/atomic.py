"""Small files written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from consilience.errors import StorageError

__all__ = ["storage_error", "sync_folder", "write_bytes_atomic", "write_text_atomic"]


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return the StorageError that says what happened to `path` and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"{path}: the disk is full; finished work is kept: free some space and run the same command again"
        )
    return StorageError(f"{path}: {error.strerror or error}; finished work is kept, run the same command again")


def sync_folder(folder: Path) -> None:
    """Make renames and new names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` to a neighbour file, make it durable, then rename it to `path`.

    Raises StorageError when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(path, error) from error


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all; see write_bytes_atomic."""
    write_bytes_atomic(path, text.encode())
