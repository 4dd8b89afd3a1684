"""RegMean++: RegMean on the inputs that the merged layers before give, instead of the experts' own.

    W = [(sum_i c_i G_i)^-1 sum_i c_i G_i W_i^T]^T,      G_i off the diagonal times the ratio

The formula is RegMean's; the Grams differ. They are gathered layer by layer: G_i comes from expert i's own layer fed
with what the layers merged so far make of expert i's data, then the layer is merged, and so on. So a layer is fitted
to the inputs that it is going to get. `consilience statistics --kind sequential_gram` gathers them, which takes all
experts at once and the weight and ratio of the merge. All other tensors, and matrices without a Gram, get the mean.

Use: RegMean's cases in deep models, where what a merged layer gets differs from what the experts' layers got.
Avoid: many layers and little time: gathering runs the data through the network about half as often as it has layers.

Source: Nguyen et al. 2025, arXiv 2508.03121; code nthehai01/RegMean-plusplus, tanganke/fusion_bench.
"""

from __future__ import annotations

from typing import Annotated

from consilience.merging.method import Aux, Between, PerExpert, Regex, Share, each, method
from consilience.merging.regression import regression_steps
from consilience.merging.steps import Steps


@method(
    base="none",
    laws=("idempotent", "permutation", "scale"),
    aux={"sequential_gram": Aux(per_expert=True, shape="gram", every=False)},
)
def regmean_plusplus(
    weight: PerExpert[Annotated[float, Between(0.0)]] = each(1.0),
    reduce_non_diagonal_ratio: Share = 0.95,
    include: Regex = "",
    exclude: Regex = "",
) -> Steps:
    """Merge linear layers by regression on the merged model's inputs.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> a, b = {"w": np.float32([[1, 1]])}, {"w": np.float32([[3, 3]])}
    >>> grams = {"a": {"w": np.diag(np.float32([3, 1]))}, "b": {"w": np.diag(np.float32([1, 3]))}}
    >>> merge_state_dicts("regmean_plusplus", None, {"a": a, "b": b}, aux={"sequential_gram": grams})["w"].tolist()
    [[1.5, 2.5]]

    weight: coefficient of each expert, 0 or more. reduce_non_diagonal_ratio: factor of the off-diagonal entries, 0 to
    1. Both have to be those that the Grams were gathered with. include, exclude: which matrices are regressed.
    """
    return regression_steps("sequential_gram", weight, reduce_non_diagonal_ratio, include, exclude)
