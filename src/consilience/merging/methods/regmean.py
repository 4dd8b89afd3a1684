"""RegMean: linear layers that reproduce the experts' layers best on the experts' own inputs (regression mean).

    W = [(sum_i c_i G_i)^-1 sum_i c_i G_i W_i^T]^T,      G_i = X_i^T X_i / n, off-diagonal entries times the ratio

X_i are the inputs of the layer in expert i. All other tensors, and matrices without a Gram, get the weighted mean.

A ratio of 1 with fewer tokens than inputs has no unique solution: a small ridge towards the mean is added there, with
a notice. Memory: about five matrices of inputs x inputs or inputs x outputs in float64.

Use: experts of several tasks with a few hundred examples each at hand; usually far ahead of averaging.
Avoid: very wide layers (a square matrix of the inputs each); merged layers whose inputs are far from the experts' own.

Needs `aux: {gram: {EXPERT: FOLDER}}`, gathered by `consilience statistics`.

Source: Jin et al. 2022, arXiv 2212.09849; code bloomberg/dataless-model-merging.
"""

from __future__ import annotations

from typing import Annotated

from consilience.merging.method import Aux, Between, PerExpert, Regex, Share, each, method
from consilience.merging.regression import regression_steps
from consilience.merging.steps import Steps


@method(
    base="none",
    laws=("idempotent", "permutation", "scale"),
    aux={"gram": Aux(per_expert=True, shape="gram", every=False)},
)
def regmean(
    weight: PerExpert[Annotated[float, Between(0.0)]] = each(1.0),
    reduce_non_diagonal_ratio: Share = 0.9,
    include: Regex = "",
    exclude: Regex = "",
) -> Steps:
    """Merge linear layers by regression.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> a, b = {"w": np.float32([[1, 1]])}, {"w": np.float32([[3, 3]])}
    >>> grams = {"a": {"w": np.diag(np.float32([3, 1]))}, "b": {"w": np.diag(np.float32([1, 3]))}}
    >>> merge_state_dicts("regmean", None, {"a": a, "b": b}, aux={"gram": grams})["w"].tolist()
    [[1.5, 2.5]]

    weight: coefficient of each expert, 0 or more. reduce_non_diagonal_ratio: factor of the off-diagonal entries, 0 to
    1 (1: as gathered). include, exclude: which matrices are regressed; the rest gets the mean.
    """
    return regression_steps("gram", weight, reduce_non_diagonal_ratio, include, exclude)
