"""Fisher: the average of the experts in which each entry counts by its Fisher information.

    theta = sum_i c_i (F_i + minimum) theta_i / sum_i c_i (F_i + minimum),      F_i the diagonal Fisher of expert i
    c_i = weight_i; with normalize, weight_i / (n_i + minimum), n_i the L2 norm of F_i over all merged tensors

The diagonal Fisher says how much an expert's outputs change with an entry, so each entry comes from the experts that
depend on it. Where all Fisher entries are 0 the result is the weighted mean. Without `normalize`, an expert that is
less sure of its outputs counts more everywhere.

Use: experts with a few hundred examples each at hand, where averaging loses some of them.
Avoid: experts that moved far apart, since pairs of entries are not looked at; it is near the mean where most entries
matter little.

It needs one diagonal per expert: `aux: {fisher: {EXPERT: FOLDER}}`, gathered by `consilience statistics`. `floor`
"add" adds the minimum to every entry (MergeLM, fusion_bench), "max" raises smaller entries to it (the authors).

Source: Matena and Raffel 2021, arXiv 2111.09832; code mmatena/model_merging, tanganke/fusion_bench.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.errors import WorkError
from consilience.merging.kernels import kernels
from consilience.merging.method import Aux, Between, PerExpert, each, method
from consilience.merging.steps import Chunk, Statistics, Steps, blocks_of

Floor = Literal["add", "max"]
Positive = Annotated[float, Between(0.0)]


@method(base="none", laws=("idempotent", "permutation", "scale"), aux={"fisher": Aux(per_expert=True)})
def fisher(
    weight: PerExpert[Positive] = each(1.0),
    normalize: bool = True,
    minimum: Positive = 1e-6,
    floor: Floor = "add",
) -> Steps:
    """Average by Fisher information.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> a, b = {"w": np.float32([1, 1])}, {"w": np.float32([3, 3])}
    >>> information = {"a": {"w": np.float32([3, 1])}, "b": {"w": np.float32([1, 3])}}
    >>> merge_state_dicts("fisher", None, {"a": a, "b": b}, aux={"fisher": information})["w"].round(3).tolist()
    [1.5, 2.5]

    weight: coefficient of each expert, 0 or more. normalize: divide each expert's Fisher by its norm over all merged
    tensors. minimum: the least information of an entry; floor: how it is applied, see above.
    """
    if not any(weight):
        raise ValueError(f"weight: all are 0 ({list(weight)}); at least one expert has to count")
    shares = [w / math.fsum(weight) for w in weight]

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        information = _checked(chunk)
        if floor == "add":
            information += information.dtype.type(minimum)
        else:
            np.maximum(information, information.dtype.type(minimum), out=information)
        coefficients = list(weight)
        if normalize:
            sizes = [norm + minimum for norm in known["norms"]]
            coefficients = [w / size if size else 0.0 for w, size in zip(weight, sizes, strict=True)]
        largest = max(coefficients) or 1.0
        information *= chunk.numbers([c / largest for c in coefficients])[:, None]
        total = information[0].copy()
        for row in information[1:]:
            total += row
        unknown = total == 0
        if unknown.any():
            information[:, unknown] = chunk.numbers(shares)[:, None]
            total[unknown] = 1
        information *= chunk.experts
        kernels().weighted_sum(information, chunk.numbers([1.0] * len(weight)), chunk.out)
        chunk.out /= total
        return chunk.out

    if not normalize:
        return Steps(apply)
    return Steps(apply, (_NormSurvey(),), "global")


def _checked(chunk: Chunk) -> NDArray[Any]:
    """Return the Fisher diagonals, (experts, elements); refuses what cannot be one."""
    information = chunk.aux["fisher"]
    for name, row in zip(chunk.expert_names, information, strict=True):
        if not (row.min() >= 0 and row.max() < math.inf):
            place = int(np.flatnonzero(~((row >= 0) & (row < math.inf)))[0])
            raise WorkError(
                f"tensor {chunk.tensor!r}: the Fisher diagonal of expert {name!r} "
                f"holds {row[place]:g} at element {chunk.start + place}; it has to be finite and 0 or more: "
                "gather it again"
            )
    return information


class _NormSurvey:
    """The L2 norm of each expert's Fisher over the model, in float64 over fixed blocks."""

    def start(self) -> list[list[float]]:
        return []

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        sums = np.empty(blocks_of(chunk.stop - chunk.start))
        for i, row in enumerate(_checked(chunk)):
            kernels().block_dots(row, row, sums)
            if i == len(state):
                state.append([])
            state[i].extend(sums.tolist())

    def close(self, state: Any) -> list[float]:
        return [math.fsum(squares) for squares in state]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        norms = [math.sqrt(math.fsum(squares)) for squares in zip(*states, strict=True)]
        for statistics in known:
            statistics["norms"] = norms
