"""Looks for NaN and infinity in the inputs of a plan before any work (`plan --scan`)."""

from __future__ import annotations

import numpy as np

from consilience.core.executor import run_tasks
from consilience.errors import CheckpointError, Problems
from consilience.merging.plan import Plan
from consilience.merging.task import DEFAULT_CHUNK, TensorTask

__all__ = ["scan_values"]


def scan_values(plan: Plan) -> None:
    """Read every input value once; raise CheckpointError naming each tensor, model and file with NaN or infinity."""
    problems = Problems()
    for _, found in run_tasks(_scan, plan.tasks, workers=plan.workers):
        problems.extend(found)
    problems.raise_if_any(CheckpointError, plan.request.origin)


def _scan(task: TensorTask) -> list[str]:
    found = []
    names = (*task.expert_names, task.base_name) if task.copy is None else ("input",)
    for name, source in zip(names, task.sources, strict=False):
        values = np.empty(min(DEFAULT_CHUNK, task.numel), np.float64)
        for start in range(0, task.numel, DEFAULT_CHUNK):
            stop = min(start + DEFAULT_CHUNK, task.numel)
            source.read(start, stop, values[: stop - start])
            bad = np.flatnonzero(~np.isfinite(values[: stop - start]))
            if bad.size:
                files = ", ".join(dict.fromkeys(str(s.path) for s in source.inputs()))
                found.append(
                    f"tensor {task.name!r}: model {name!r} holds {values[bad[0]]} at element {start + int(bad[0])} "
                    f"({files})"
                )
                break
    return found
