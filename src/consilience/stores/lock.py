"""The lock of an index's one writer."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from consilience.errors import OutputError

__all__ = ["WriterLock"]


class WriterLock:
    """A lock on a folder that a process holds until it releases it or ends."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, -1

    @property
    def held(self) -> bool:
        """Whether this process writes."""
        return self._file >= 0

    def take(self) -> None:
        """Take the lock. Raises OutputError naming the process that has it."""
        self._file = os.open(self._folder / "writer.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 20).decode(errors="replace").strip() or "unknown"
            self.release()
            raise OutputError(
                f"{self._folder}: process {holder} is writing to this index; wait for it, or open it for reading"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let go of the lock, where it is held."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
