"""Model Stock: move from the base towards the mean of the experts, as far as the angle between them says.

    theta = base + t * mean tau,   t = N c / (1 + (N - 1) c),   c = mean over pairs of cos(tau_i, tau_j)

N experts, tau_i = theta_i - base, per tensor, or per row (last dimension) with filter_wise. Experts that agree
(c near 1) give t near 1, unrelated ones (c near 0) the base. The paper uses one angle; the mean of pairs is
mergekit's choice. Made for runs of one task with different seeds; experts of different tasks are nearly orthogonal
and it gives almost the base. Opposed experts give a negative t, a step away from all of them (a warning says so);
where the denominator is below 1e-6 the mean is no direction and the base stays.

guard "relative": a pair with a zero task vector has cosine 0. "absolute": products of norms count as at least 1e-6, as
published, which pulls small tensors and rows towards the base whatever their angle.

Use: two or more runs of one task: close to the best average without validation data.
Avoid: experts of different tasks, which are nearly orthogonal: it gives almost the base.

Source: Jang et al. 2024, Model Stock, arXiv 2403.19522; mergekit.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.merging.gram import Gram, combination_steps
from consilience.merging.kernels import kernels, row_kernels
from consilience.merging.method import method
from consilience.merging.steps import Chunk, Statistics, Steps

Guard = Literal["relative", "absolute"]


@method(base="required", laws=("idempotent", "permutation", "scale"), min_experts=2)
def model_stock(filter_wise: bool = False, guard: Guard = "relative") -> Steps:
    """Interpolate between the base and the mean by the experts' agreement.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a, b = {"w": np.zeros(3)}, {"w": np.array([2.0, 2, 0])}, {"w": np.array([2.0, 0, 2])}
    >>> merge_state_dicts("model_stock", base, {"a": a, "b": b})["w"].round(4).tolist()
    [1.3333, 0.6667, 0.6667]

    filter_wise: one angle per row instead of one per tensor. guard: how small norms count, see above.
    """
    if filter_wise:
        return Steps(_row_apply(guard), whole_rows=True, deltas=True)

    def solve(gram: Gram) -> list[float]:
        ratio = float(_ratio(gram[..., None], guard)[0])
        if ratio < 0:
            warnings.warn(
                "model_stock: experts oppose each other in at least one tensor; its ratio is negative, so the merge "
                "moves away from them",
                stacklevel=2,
            )
        return [ratio / len(gram)] * len(gram)

    return combination_steps(solve)


def _ratio(grams: NDArray[np.float64], guard: Guard) -> NDArray[np.float64]:
    """Return t from the inner products of task vectors: shape (experts, experts, rows)."""
    count = len(grams)
    norms = [np.sqrt(grams[i, i]) for i in range(count)]
    total = np.zeros(grams.shape[2])
    pairs = list(combinations(range(count), 2))
    for i, j in pairs:
        product = norms[i] * norms[j]
        product = np.maximum(product, 1e-6) if guard == "absolute" else np.where(product > 0, product, 1.0)
        total += np.clip(grams[i, j] / product, -1.0, 1.0)
    cosine = total / len(pairs)
    below = 1.0 + (count - 1) * cosine
    defined = np.abs(below) >= 1e-6
    ratio: NDArray[np.float64] = np.where(defined, count * cosine / np.where(defined, below, 1.0), 0.0)
    return ratio


def _row_apply(guard: Guard) -> Any:
    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        deltas, row = chunk.deltas, chunk.shape[-1] if chunk.shape else 1
        count = len(deltas)
        grams = np.empty((count, count, deltas.shape[1] // row))
        for i in range(count):
            for j in range(i, count):
                row_kernels().row_dots(deltas[i], deltas[j], row, grams[i, j])
                grams[j, i] = grams[i, j]
        kernels().weighted_sum(deltas, chunk.numbers(_mean(count)), chunk.out)
        chunk.out *= np.repeat(_ratio(grams, guard).astype(chunk.out.dtype), row)
        kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    return apply


def _mean(count: int) -> Sequence[float]:
    return [1.0 / count] * count
