"""Karcher mean: the point of the sphere with the least sum of squared angles to the experts, with their mean norm.

u starts at the normalised mean of the unit vectors u_i = x_i / |x_i| (at u_1 where they cancel); each step takes the
mean of the tangent vectors (a_i / sin a_i) (u_i - cos a_i u), a_i the angle from u to u_i, and follows it along the
sphere; it stops when that mean is shorter than `tol` or after `max_iter` steps. theta = u * mean |x_i|.

Tensors are flattened; steps are taken in the coefficients of the experts, from their inner products, so the tensor is
read twice whatever `max_iter`. Unlike slerp it takes any number of experts and treats them alike. For fine-tuned
models of one base the angles are tiny and it equals the mean direction. Tensors shorter than `tol` times the longest
are left out of the direction (the published code: shorter than `tol`) but count in the mean norm; an expert opposite
to u, to which no direction leads, is left out of that step.

Use: two or more models of one origin whose norms should be kept.
Avoid: models without a common origin, whose directions have no meaningful middle.

Source: Karcher 1977; Functionality-Oriented LLM Merging on the Fisher-Rao Manifold, arXiv 2603.04972; mergekit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from consilience.merging.gram import RESOLUTION, Gram, combination_steps, inner, length, norms
from consilience.merging.method import Between, method
from consilience.merging.steps import Steps


@method(base="none", laws=("idempotent", "permutation", "scale"))
def karcher(max_iter: Annotated[int, Between(0)] = 10, tol: Annotated[float, Between(0.0, 1.0)] = 1e-5) -> Steps:
    """Average directions on the sphere.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> a, b = {"w": np.array([2.0, 0])}, {"w": np.array([0, 4.0])}
    >>> merge_state_dicts("karcher", None, {"a": a, "b": b})["w"].round(4).tolist()
    [2.1213, 2.1213]

    max_iter: most steps taken. tol: the length of a step, in radians, at which it has converged.
    """

    def solve(gram: Gram) -> list[float]:
        if len(gram) == 1:
            return [1.0]
        lengths = norms(gram)
        longest = max(lengths)
        scales = [1.0 / n if n > tol * longest else 0.0 for n in lengths]
        taking_part = [i for i, s in enumerate(scales) if s]
        if not taking_part:
            return scales
        units = gram * [[a * b for b in scales] for a in scales]
        share = 1.0 / len(taking_part)
        at = _normalised(units, [share if s else 0.0 for s in scales], tol)
        if at is None:
            at = [float(i == taking_part[0]) for i in range(len(scales))]
        for _ in range(max_iter):
            step = _mean_tangent(units, at, taking_part, tol)
            size = length(units, step)
            if size < tol or size == 0:
                break
            moved = [math.cos(size) * a + math.sin(size) / size * s for a, s in zip(at, step, strict=True)]
            at = _normalised(units, moved, tol) or moved
        norm = math.fsum(lengths) / len(lengths)
        return [a * s * norm for a, s in zip(at, scales, strict=True)]

    return combination_steps(solve, around_base=False)


def _normalised(units: Gram, coefficients: Sequence[float], tol: float) -> list[float] | None:
    """Return the combination made a unit vector, None where it is too short for that."""
    size = length(units, coefficients)
    return None if size < max(tol, RESOLUTION) else [c / size for c in coefficients]


def _mean_tangent(units: Gram, at: Sequence[float], taking_part: Sequence[int], tol: float) -> list[float]:
    """Return the mean of the tangent vectors at a point towards each unit vector."""
    step = [0.0] * len(at)
    for i, cosine in enumerate(inner(units, at)):
        cosine = min(max(cosine, -1.0), 1.0)
        angle, sine = math.acos(cosine), math.sqrt((1.0 - cosine) * (1.0 + cosine))
        if i not in taking_part or angle < tol or sine < RESOLUTION:
            continue
        factor = angle / sine / len(taking_part)
        step = [s - factor * cosine * a for s, a in zip(step, at, strict=True)]
        step[i] += factor
    return step
