"""Progress with rate and time left: a bar on a terminal, plain lines otherwise, always on stderr."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

__all__ = ["Progress"]

_LINE_EVERY = 10.0


def _amount(value: float, unit: str) -> str:
    if unit != "B":
        return f"{value:,.0f} {unit}"
    for name in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or name == "TB":
            return f"{value:.0f} {name}" if name == "B" else f"{value:.1f} {name}"
        value /= 1000
    return f"{value:.1f} TB"


class Progress:
    """Progress of one piece of work, counted in `unit` ("B" prints bytes).

    >>> with Progress(3, "tensors", "merging", enabled=False) as progress:
    ...     progress.advance(1)
    ...     progress.done
    1.0

    `enabled=None` shows a bar where stderr is a terminal and a line about every 10 s elsewhere. Thread-safe.
    """

    def __init__(self, total: float, unit: str, label: str, *, enabled: bool | None = None) -> None:
        self.total = float(total)
        self.unit = unit
        self.label = label
        self.done = 0.0
        self._skipped = 0.0
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._last_line = self._started
        self._shown = enabled is not False
        self._bar: Any = None
        if self._shown and sys.stderr.isatty():
            self._bar = _bar(self.total, unit, label)
            self._task = self._bar.add_task(label, total=self.total, info="")
            self._bar.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def skip(self, amount: float) -> None:
        """Count work that an earlier run had finished; it does not enter the rate."""
        with self._lock:
            self._skipped += amount
        self.advance(amount)

    def advance(self, amount: float) -> None:
        """Count finished work."""
        with self._lock:
            self.done += amount
            now = time.monotonic()
            if self._bar is not None:
                self._bar.update(self._task, completed=self.done, info=self.status())
            elif self._shown and now - self._last_line >= _LINE_EVERY:
                self._last_line = now
                print(f"{self.label}: {self.status()}", file=sys.stderr, flush=True)

    def status(self) -> str:
        """Return "done of total, rate, time left" in words."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (self.done - self._skipped) / seconds
        left = f", {max(self.total - self.done, 0) / rate:.0f} s left" if rate > 0 else ""
        total = _amount(self.total, self.unit)
        return f"{_amount(self.done, self.unit)} of {total}, {_amount(rate, self.unit)}/s{left}"

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(total: float, unit: str, label: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[info]}"))
    return Bar(*columns, console=Console(stderr=True), transient=True)
