"""Open file descriptors shared by all threads of a process: bounded, positional, safe across fork.

Reads and writes name their position, so threads share one descriptor without a lock around the transfer. A file that
was replaced under the same name is noticed and opened again.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from consilience.core.atomic import storage_error
from consilience.errors import StorageError

__all__ = ["MAX_DESCRIPTORS", "descriptor", "file_identity", "read_into", "write_from"]

MAX_DESCRIPTORS = 64
"""Descriptors kept open while nobody uses them; those in use are never closed."""


@dataclass(slots=True)
class _Entry:
    number: int
    identity: tuple[int, int]
    users: int = 0
    stale: bool = False


class _Cache:
    """Least recently used descriptors, by path and direction."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: OrderedDict[tuple[Path, bool], _Entry] = OrderedDict()

    def acquire(self, path: Path, write: bool) -> _Entry:
        status = os.stat(path)  # noqa: PTH116 - a third of the cost of Path.stat
        identity = (status.st_dev, status.st_ino)
        key = (path, write)
        with self.lock:
            entry = self.entries.get(key)
            if entry is not None and entry.identity != identity:
                del self.entries[key]
                self._retire(entry)
                entry = None
            if entry is None:
                number = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
                opened = os.fstat(number)
                entry = self.entries[key] = _Entry(number, (opened.st_dev, opened.st_ino))
            entry.users += 1
            self.entries.move_to_end(key)
            self._shrink()
            return entry

    def release(self, entry: _Entry) -> None:
        with self.lock:
            entry.users -= 1
            if entry.stale and not entry.users:
                os.close(entry.number)

    def _retire(self, entry: _Entry) -> None:
        entry.stale = True
        if not entry.users:
            os.close(entry.number)

    def _shrink(self) -> None:
        excess = len(self.entries) - MAX_DESCRIPTORS
        if excess <= 0:
            return
        for key in [key for key, entry in self.entries.items() if not entry.users][:excess]:
            self._retire(self.entries.pop(key))

    def after_fork(self) -> None:
        """Start afresh in the child: the parent's threads, which held lock and users, do not exist here."""
        self.lock = threading.Lock()
        for entry in self.entries.values():
            os.close(entry.number)
        self.entries.clear()


_CACHE = _Cache()
os.register_at_fork(after_in_child=_CACHE.after_fork)


@contextmanager
def descriptor(path: Path, *, write: bool = False) -> Iterator[int]:
    """Lend an open descriptor of an existing file for positional reads, or writes.

    >>> with descriptor(Path(__file__)) as number:
    ...     len(os.pread(number, 3, 0))
    3

    Raises OSError as `os.open` does.
    """
    cache = _CACHE
    entry = cache.acquire(path, write)
    try:
        yield entry.number
    finally:
        cache.release(entry)


def file_identity(path: Path) -> tuple[int, int, int, int]:
    """Return what changes when a file is replaced or rewritten: device, inode, size and time of change."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_into(path: Path, offset: int, view: memoryview) -> None:
    """Fill `view` (bytes) from position `offset` of a file.

    Raises StorageError when the file is gone, cannot be read or has become shorter than its header said.
    """
    cache = _CACHE
    try:
        entry = cache.acquire(path, False)  # not `descriptor`: this runs once per chunk of every input
        try:
            while view.nbytes:
                count = os.preadv(entry.number, [view], offset)
                if not count:
                    raise StorageError(
                        f"{path}: ends {view.nbytes} bytes early at {offset}; "
                        "it changed after it was opened: restore it and run the same command again"
                    )
                view, offset = view[count:], offset + count
        finally:
            cache.release(entry)
    except OSError as error:
        raise storage_error(path, error) from error


def write_from(path: Path, offset: int, view: memoryview) -> None:
    """Write all of `view` (bytes) at position `offset` of an existing file.

    Raises StorageError when the disk is full or the file cannot be written.
    """
    try:
        with descriptor(path, write=True) as number:
            while view.nbytes:
                count = os.pwrite(number, view, offset)
                view, offset = view[count:], offset + count
    except OSError as error:
        raise storage_error(path, error) from error
