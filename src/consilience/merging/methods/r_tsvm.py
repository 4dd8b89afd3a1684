"""R-TSVM: TSV-M with experts weighed by their outliers and fewer directions where updates are sparse.

A reconstruction: neither code nor equations of the paper were at hand. It follows the abstract (outlier-aware weights,
rank adapted to sparsity, on top of TSV-M); the formulas are this project's. For each matrix of m x n with T experts and
task matrices tau_i = theta_i - theta_0:

1. a = |tau_i|; the outlier mass o_i is the sum of the entries above mean(a) + n_sigma * std(a);
   w_i = T * o_i^p / sum_j o_j^p with p = outlier_power (w_i = 1 where p = 0 or an expert has no outliers);
2. s = mean over experts of the share of entries below eps_rel * r_i, r_i the root mean square of expert i's task
   matrices over the whole model;
3. r = int(min(m, n) / T); k = round(r * (1 - gamma * s)), half to even, within 1 and r;
4. the k leading singular triplets of each tau_i, concatenated;
   theta = theta_0 + alpha * P(U) diag(w S) P(V), P(X) the polar factor.

outlier_power 0 and gamma 0 are TSV-M. Experts whose task matrix is zero count neither in w nor in s. All other tensors
get alpha times the mean of the task vectors (or stay, `rest: base`).

A positive power gives the expert with the largest outliers more weight, a negative one less (which of them the paper
means is not known). With more experts than min(m, n) one direction of each is kept, which then cannot all be
orthogonal: a notice says so.

Use: preference-tuned experts of unequal strength and sparsity.
Avoid: experts whose sizes differ widely, since weights and updates then both follow the size; outlier_power 0 is TSV-M.

Source: Yang et al. 2025, Mix Data or Merge Models?, arXiv 2502.06876 (R-TSVM, later RESM).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from consilience.merging.kernels import kernels
from consilience.merging.matrix import Rest
from consilience.merging.method import Between, Regex, method
from consilience.merging.spectral import TaskMatrices, orthogonalised, spectral_steps
from consilience.merging.steps import Chunk, Statistics, Steps, blocks_of

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 20  # entries in float64 at a time


@method(base="required", laws=("idempotent", "permutation", "scale"))
def r_tsvm(
    alpha: float = 1.0,
    n_sigma: float = 3.0,
    outlier_power: Annotated[float, Between(-16.0, 16.0)] = 1.0,
    eps_rel: Annotated[float, Between(0.0)] = 0.1,
    gamma: Annotated[float, Between(0.0)] = 1.0,
    include: Regex = "",
    exclude: Regex = ".*text_projection",
    rest: Rest = "mean",
) -> Steps:
    """Weigh by outliers, choose the rank by sparsity, orthogonalise.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros((2, 2), np.float32)}
    >>> a, b = {"w": np.float32([[4, 0], [0, 1]])}, {"w": np.float32([[0, 0], [0, 2]])}
    >>> (3 * merge_state_dicts("r_tsvm", base, {"a": a, "b": b}, n_sigma=1.0)["w"]).round(3).tolist()
    [[16.0, 0.0], [0.0, 4.0]]

    alpha: coefficient of the merged change. n_sigma: standard deviations above the mean from which an entry is an
    outlier. outlier_power: exponent of the outlier mass, 0 for equal weights. eps_rel: magnitude, relative to the
    expert's root mean square, below which an entry counts as sparse. gamma: how much sparsity takes from the rank, 0
    for TSV-M's rank. include, exclude: which matrices are decomposed. rest: what the other tensors get, the mean of the
    task vectors (times alpha) or nothing. Weights, sparsity and rank of each matrix are among the facts of the merge.
    """

    def change(tasks: TaskMatrices, known: Statistics) -> Tensor | None:
        masses, shares = [], []
        for index, typical in enumerate(known["rms"]):
            mass, sparse, filled = _measure(tasks[index], n_sigma, eps_rel * typical)
            masses.append(mass if filled else None)
            shares += [sparse] if filled else []
        if not shares:
            return None
        weights = _weights(masses, outlier_power)
        sparsity = math.fsum(shares) / len(shares)
        room = tasks.smaller // tasks.count
        if room == 0:
            warnings.warn(
                f"r_tsvm: tensor {tasks.tensor!r} ({tasks.rows} x {tasks.columns}) has no room for one direction of "
                f"each of {tasks.count} experts; one of each was merged, though they cannot all be orthogonal; exclude "
                "it to give it the mean",
                stacklevel=2,
            )
        kept = min(max(round(room * (1 - gamma * sparsity)), 1), max(room, 1))
        named = dict(zip(tasks.expert_names, weights, strict=True))
        known["facts"] = {"weights": named, "sparsity": sparsity, "rank": kept}
        return orthogonalised(tasks, kept, weights)

    return spectral_steps(change, alpha, include, exclude, rest, survey=_Scale())


def _measure(task: Tensor, n_sigma: float, least: float) -> tuple[float, float, bool]:
    """Return the outlier mass, the share of entries below `least`, and whether the matrix has entries but zeros."""
    size = task.abs().reshape(-1)
    largest = float(size.max())
    if largest == 0:
        return 0.0, 0.0, False
    total = square = 0.0
    sparse = 0
    for start in range(0, len(size), _PIECE):
        part = size[start : start + _PIECE].double()
        total += float(part.sum())
        square += float(part.square().sum())
        sparse += int((part < least).sum())
    mass = 0.0
    if float(size.min()) < largest:  # else there are no outliers, but the mean's rounding could make some
        mean = total / len(size)
        limit = mean + n_sigma * math.sqrt(max(square / len(size) - mean * mean, 0.0))
        for start in range(0, len(size), _PIECE):
            part = size[start : start + _PIECE].double()
            mass += float(part[part > limit].sum())
    return mass, sparse / len(size), True


def _weights(masses: Sequence[float | None], power: float) -> list[float]:
    """Return the experts' weights, of mean 1 over those that count; None does not."""
    counted = [mass for mass in masses if mass is not None]
    if power == 0 or not min(counted) > 0:
        return [0.0 if mass is None else 1.0 for mass in masses]
    largest = max(counted)
    powers = [0.0 if mass is None else (mass / largest) ** power for mass in masses]
    return [len(counted) * value / math.fsum(powers) for value in powers]


class _Scale:
    """The root mean square of each expert's task matrices, all tensors together."""

    def start(self) -> dict[int, float]:
        return {}

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        sums = np.empty(blocks_of(chunk.deltas.shape[1]))
        for expert, deltas in enumerate(chunk.deltas):
            kernels().block_dots(deltas, deltas, sums)
            total = state.get(expert, 0.0)
            for value in sums.tolist():
                total += value
            state[expert] = total
        state[-1] = state.get(-1, 0) + chunk.stop - chunk.start

    def close(self, state: Any) -> dict[int, float]:
        return dict(state)

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        counted = [state for state in states if state]
        entries = sum(state[-1] for state in counted)
        experts = len(counted[0]) - 1 if counted else 0
        squares = [math.fsum(state[expert] for state in counted) for expert in range(experts)]
        for statistics in known:
            statistics["rms"] = [math.sqrt(square / entries) for square in squares]
