"""What a computation costs: seconds, repeated, and the peak of resident memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from consilience.core.memory import peak_memory

__all__ = ["Cost", "measure_cost", "measure_once"]


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
    """Call `function` once for its memory, then `repeats` times under the clock; the result is that of the last call.

    >>> cost = measure_cost(lambda: sum(range(1000)), repeats=2)
    >>> cost.result, len(cost.wall)
    (499500, 2)

    Peak memory is the kernel's record of resident memory (Linux), so it counts every library; the call that it is
    taken of runs in a thread of its own, which finds no scratch memory of earlier ones.
    """
    peak = _peak_of(function)
    wall, cpu = [], []
    result = None
    for _ in range(repeats):
        result = None
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        result = function()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return Cost(result, tuple(wall), tuple(cpu), peak)


def measure_once(function: Callable[[], Any]) -> Cost:
    """Call a long `function` once, under the clock and with its memory."""
    results: list[Any] = []
    wall, cpu = time.perf_counter(), time.process_time()
    peak = _peak_of(lambda: results.append(function()))
    return Cost(results[0], (time.perf_counter() - wall,), (time.process_time() - cpu,), peak)


def _peak_of(function: Callable[[], Any]) -> int | None:
    """Return how far resident memory rises while the function runs; None where the kernel does not tell."""
    with ThreadPoolExecutor(1) as pool, peak_memory() as peak:
        pool.submit(function).result()
    return peak.bytes
