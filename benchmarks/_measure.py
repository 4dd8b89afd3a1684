"""Measures whole processes: CPU and wall seconds, and the peak of private memory."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_POLL = 0.02


@dataclass(frozen=True)
class Figures:
    """What one run of a process cost. `private` is the peak of RssAnon in bytes, polled every 20 ms."""

    cpu: float
    wall: float
    private: int


def run(command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None) -> Figures:
    """Run a process to its end and measure it; its output goes to `log`. Stops the benchmark when it fails."""
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", **(environment or {})}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
        peak = [0]
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, stop))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        stop.set()
        watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}:\n{tail}")
    return Figures(usage.ru_utime + usage.ru_stime, wall, peak[0])


def middle(runs: Sequence[Figures]) -> Figures:
    """Return the medians of several runs, and the largest of their peaks."""
    return Figures(median(r.cpu for r in runs), median(r.wall for r in runs), max(r.private for r in runs))


def _watch(pid: int, peak: list[int], stop: threading.Event) -> None:
    path = Path(f"/proc/{pid}/status")
    while not stop.is_set():
        try:
            found = re.search(r"RssAnon:\s+(\d+) kB", path.read_text())
        except OSError:
            return
        if found:
            peak[0] = max(peak[0], int(found[1]) * 1024)
        stop.wait(_POLL)
