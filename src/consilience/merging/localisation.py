"""The block of TALL-masks, Consensus and mask bundles: one vector for all tasks, and where in it each task lives.

    tau_MTL = sum_t tau_t                       ("task_arithmetic"; tau_t = theta_t - base, unscaled)
            = sum of the tau_t that agree        ("ties": of each tau_t the `density` share of largest magnitude over
                                                  the whole model, sign elected per weight, agreeing entries summed)
    mask_t  = |tau_t| > lambda_t * |tau_MTL - tau_t|

Source: Wang et al. 2024, Localizing Task Information for Improved Model Merging and Compression, arXiv 2405.07813.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.sparsify import Magnitude
from consilience.merging.steps import Chunk, Statistics, Survey, WholeSurvey
from consilience.merging.task_vectors import task_vector_steps

__all__ = ["Localisation", "MultiTask"]

MultiTask = Literal["task_arithmetic", "ties"]


class Localisation:
    """The multi-task vector and the masks of each task.

    Raises ValueError where a threshold (lambda_t) is not a number above 0.
    """

    def __init__(self, merge: MultiTask, density: float, thresholds: Sequence[float]) -> None:
        for threshold in thresholds:
            if not 0 < threshold < math.inf:
                raise ValueError(f"tall_mask_lambda: {threshold:g} is not a number above 0")
        self.merge = merge
        self.thresholds = tuple(thresholds)
        self.weights = (1.0,) * len(self.thresholds)
        self.trim = None
        self.surveys: tuple[Survey | WholeSurvey, ...] = ()
        self.scope: Literal["tensor", "global"] = "tensor"
        self.shared: tuple[Any, ...] = ()
        if merge == "ties":
            self.trim = Magnitude(len(self.weights), lambda expert, size: min(int(density * size) + 1, size))
            vote = task_vector_steps(self.weights, 1.0, sparsifiers=(self.trim,), merge_function="sum", scope="global")
            self.surveys, self.scope, self.shared = vote.surveys, "global", ("density", density)

    def vector(self, chunk: Chunk, known: Statistics) -> NDArray[Any]:
        """Return the multi-task vector of a chunk, in `chunk.out`; the task vectors stay in `chunk.deltas`."""
        deltas = chunk.deltas
        if self.trim is None:
            kernels().weighted_sum(deltas, chunk.numbers(self.weights), chunk.out)
        else:
            trimmed = replace(chunk, experts=deltas.copy())
            self.trim.apply(trimmed, known)
            kernels().consensus(trimmed.deltas, chunk.numbers(self.weights), 0, known["zero_sign"], chunk.out)
        return chunk.out

    def mask(self, chunk: Chunk, total: NDArray[Any], expert: int) -> NDArray[np.bool_]:
        """Return where in the multi-task vector an expert's task lives."""
        own = chunk.deltas[expert]
        others = total - own
        np.abs(others, out=others)
        others *= others.dtype.type(self.thresholds[expert])
        found: NDArray[np.bool_] = np.abs(own) > others
        return found
