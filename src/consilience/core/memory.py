"""How far memory rises while something runs, as the kernel counts it (Linux)."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Peak", "peak_memory"]

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_EVERY = 0.02


class Peak:
    """What `peak_memory` found, above the start; None where the system does not tell.

    `bytes`: resident, mapped files among it. `private`: the process's own, looked at every 20 ms.
    """

    bytes: int | None = None
    private: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the rise of memory within the block, of all libraries together.

    >>> with peak_memory() as peak:
    ...     _ = bytearray(1000)
    >>> peak.bytes is None or peak.bytes >= 0
    True
    """
    peak = Peak()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but kept would hide what is taken
    try:
        _RESET.write_text("5")
    except OSError:
        yield peak
        return
    resident, private, most = _status("VmRSS"), _status("RssAnon"), 0
    over = threading.Event()

    def look() -> None:
        nonlocal most
        while True:
            most = max(most, _status("RssAnon"))
            if over.wait(_EVERY):
                return

    watcher = threading.Thread(target=look, name="memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak.bytes, peak.private = max(_status("VmHWM") - resident, 0), max(most - private, 0)


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0
