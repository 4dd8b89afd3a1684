"""What a computation costs: seconds, repeated, and the peak of resident memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["Cost", "measure_cost"]

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Seconds of every repetition and the highest resident memory above the start; None where it is not known."""

    result: Any = field(repr=False)
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """Median wall time of a repetition."""
        return median(self.wall)

    @property
    def spread(self) -> float:
        """How far CPU times of the repetitions lie apart: largest over smallest, less 1."""
        return max(self.cpu) / max(min(self.cpu), 1e-9) - 1


def measure_cost(function: Callable[[], Any], *, repeats: int = 3) -> Cost:
    """Call `function` once to warm up and `repeats` times under the clock; the result is that of the last call.

    >>> cost = measure_cost(lambda: sum(range(1000)), repeats=2)
    >>> cost.result, len(cost.wall)
    (499500, 2)

    Peak memory is the kernel's record of resident memory during the last call (Linux), so it counts every library.
    """
    function()
    wall, cpu = [], []
    result, peak = None, None
    for index in range(repeats):
        result = None
        before = _reset_peak() if index == repeats - 1 else None
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        result = function()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
        if before is not None:
            peak = max(_status("VmHWM") - before, 0)
    return Cost(result, tuple(wall), tuple(cpu), peak)


def _reset_peak() -> int | None:
    """Start a new record of the highest resident memory; return what is resident now, None where that is not known."""
    try:
        _RESET.write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0
