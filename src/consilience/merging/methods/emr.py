"""EMR: elect one vector for all tasks, keep a mask and a rescaler per task.

    sign       = + where mean_t tau_t > 0, else -                      tau_t = theta_t - base
    unified    = sign * the largest |tau_t| of the experts that have this sign
    mask_t     = tau_t has the sign
    rescaler_t = sum over tensors of mean|tau_t| / sum over tensors of mean|mask_t * unified|
    model of task t = base + rescaler_t * mask_t * unified             without a task: base + unified

The mask takes a task's opponents out, the rescaler restores the mean size of its changes; one bit per weight and one
number per task are stored beside base and vector. Without a mask the unified vector overshoots, as every entry is the
largest there is. A task that loses every vote has an empty mask: its model is the base (a warning says so).

Use: serving every task from one vector, a bit per weight and a number per task, without data.
Avoid: one model for all tasks: the unified vector alone answers none of them well.

Source: Huang et al. 2024, EMR-Merging: Tuning-Free High-Performance Model Merging, arXiv 2405.17461; code
harveyhuang18/EMR_Merging (the means are taken per tensor and summed, as there).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.method import Chosen, method
from consilience.merging.steps import Chunk, Statistics, Steps, Survey, blocks_of


@method(base="required", laws=("idempotent", "permutation", "scale"))
def emr(task: Chosen = -1) -> Steps:
    """Elect, mask, rescale.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.float32([0, 0, 0])}
    >>> a, b = {"w": np.float32([3, 0, -1])}, {"w": np.float32([1, 2, -6])}
    >>> merge_state_dicts("emr", base, {"a": a, "b": b})["w"].tolist()
    [3.0, 2.0, -6.0]
    >>> merge_state_dicts("emr", base, {"a": a, "b": b}, task="a")["w"].astype(float).round(3).tolist()
    [1.333, 0.0, -2.667]

    task: the expert to reconstruct; none: the model of the unified vector.
    """

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        unified = _unified(chunk)
        if task >= 0:
            kernels().apply_keep(unified, _mask(chunk.deltas[task], unified), known["rescaler"])
        kernels().add_base(unified, chunk.base, 1.0)
        return unified

    if task < 0:
        return Steps(apply, deltas=True)
    surveys: tuple[Survey, ...] = (_RescalerSurvey(task),)
    return Steps(apply, surveys, "global", shared=("task", task), deltas=True)


def _unified(chunk: Chunk) -> NDArray[Any]:
    """Return the unified vector, in `chunk.out`: the largest change of the elected sign; a mean of 0 elects minus."""
    deltas = chunk.deltas
    kernels().consensus(deltas, chunk.numbers([1.0] * len(deltas)), 2, -1, chunk.out)
    return chunk.out


def _mask(deltas: NDArray[Any], unified: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where an expert has the elected sign; the unified vector has it wherever any expert does."""
    found: NDArray[np.bool_] = ((deltas > 0) & (unified > 0)) | ((deltas < 0) & (unified < 0))
    return found


class _RescalerSurvey:
    """Mean magnitudes of a task vector and of the unified vector under its mask, per tensor, in float64."""

    def __init__(self, task: int) -> None:
        self.task = task

    def start(self) -> list[float]:
        return [0.0, 0.0]

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        own, unified = chunk.deltas[self.task], _unified(chunk)
        kernels().apply_keep(unified, _mask(own, unified), 1.0)
        sums = np.empty(blocks_of(own.size))
        for place, values in enumerate((own, unified)):
            kernels().block_norms(values, sums)
            for value in sums.tolist():  # block by block, so that chunks do not matter
                state[place] += value

    def close(self, state: Any) -> list[float]:
        return list(state)

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        own, kept = (
            math.fsum(state[place] / size for state, size in zip(states, sizes, strict=True)) for place in (0, 1)
        )
        if own > 0 and kept == 0:
            warnings.warn(
                "emr: the task loses every vote, so its mask is empty and its model is the base", stacklevel=2
            )
        rescaler = own / kept if kept > 0 else 1.0
        for statistics in known:
            statistics["rescaler"] = rescaler
            statistics["facts"] = {"rescaler": rescaler}
