"""TSV-M: keep the leading singular directions of each task matrix and make those of different experts orthogonal.

For each matrix of m x n with r = min(m, n), T experts and task matrices tau_i = theta_i - theta_0:

1. keep the k = int(r / T) leading singular triplets U_i, S_i, V_i of each tau_i;
2. U = [U_1 .. U_T], S and V likewise;
3. theta = theta_0 + alpha * P(U) diag(S) P(V), where P(X), the polar factor, is the nearest matrix to X with
   orthonormal columns (rows for V).

All other tensors get alpha times the mean of the task vectors (or stay, `rest: base`). One expert comes out as it is.

Experts whose task matrix is zero are left out, directions that are rounding (1e-6 of the largest) too, so copies of
one expert or low-rank updates give no arbitrary directions. With more experts than r nothing can be kept: the matrix
stays as in the base, with a notice. For language models exclude embeddings and the head.

Use: several fully fine-tuned experts whose updates interfere; no data, one coefficient.
Avoid: more experts than a matrix has room for; updates of high rank, of which only the r / T leading directions remain.

Source: Gargiulo et al. 2024, Task Singular Vectors, arXiv 2412.00081; code AntoAndGar/task_singular_vectors.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from consilience.merging.matrix import Rest
from consilience.merging.method import Regex, method
from consilience.merging.spectral import TaskMatrices, orthogonalised, spectral_steps
from consilience.merging.steps import Statistics, Steps

if TYPE_CHECKING:
    from torch import Tensor


@method(base="required", laws=("idempotent", "permutation", "scale"))
def tsv(alpha: float = 1.0, include: Regex = "", exclude: Regex = ".*text_projection", rest: Rest = "mean") -> Steps:
    """Keep leading directions, orthogonalise.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros((2, 2), np.float32)}
    >>> a, b = {"w": np.float32([[4, 0], [0, 1]])}, {"w": np.float32([[0, 0], [0, 2]])}
    >>> merge_state_dicts("tsv", base, {"a": a, "b": b})["w"].round(4).tolist()
    [[4.0, 0.0], [0.0, 2.0]]

    alpha: coefficient of the merged change. include, exclude: which matrices are decomposed. rest: what the other
    tensors get, the mean of the task vectors (times alpha) or nothing.
    """

    def change(tasks: TaskMatrices, known: Statistics) -> Tensor | None:
        if tasks.count == 1:
            return tasks[0]
        kept = tasks.smaller // tasks.count
        if kept == 0:
            warnings.warn(
                f"tsv: tensor {tasks.tensor!r} ({tasks.rows} x {tasks.columns}) has no room for one direction of each "
                f"of {tasks.count} experts and stays as in the base; exclude it to give it the mean",
                stacklevel=2,
            )
            return None
        return orthogonalised(tasks, kept)

    return spectral_steps(change, alpha, include, exclude, rest)
