"""SCE: select where experts differ, calculate weights from their energy, erase minority signs.

1. select: keep the `select_topk` share of the positions of non-zero variance across experts, those of largest
   variance (1: keep everything); at least one, the lowest index first;
2. calculate: w_i = mean square of tau_i = theta_i - base after the selection, divided by the sum over experts;
3. erase: at each position elect the sign of sum_i tau_i (zero elects plus); m_i says whether tau_i has it;
4. theta = base + sum_i w_i m_i tau_i / max(sum_i w_i m_i, 1e-6), per tensor.

Needs no weights. It fails where one expert has far larger changes than the others: its weight is near 1 and the others
hardly count. With select_topk below 1, a tensor in which all experts are the same stays as in the base.

guard "relative": weights follow the energies however small. "absolute": where their sum is below 1e-6 all weights are
equal, as published, which turns weighting off for small task vectors (below about 1e-3 / sqrt(N) rms).

Use: several experts of which some positions matter more, without any weights to choose.
Avoid: experts of very unequal size of change: the largest decides.

Source: Wan et al. 2024, FuseChat, arXiv 2408.07990; mergekit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels, row_kernels
from consilience.merging.method import Share, method
from consilience.merging.selection import Selection
from consilience.merging.steps import Chunk, Statistics, Steps, Survey, blocks_of

_LEAST_SHARE = 1e-6
_LEAST_ENERGY = 1e-6
_MOST_KEPT = 1 << 24  # bytes per tensor


@method(base="required", laws=("idempotent", "permutation", "scale"), min_experts=2)
def sce(select_topk: Share = 1.0, guard: Literal["relative", "absolute"] = "relative") -> Steps:
    """Select, calculate, erase.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros(2, np.float32)}
    >>> a, b = {"w": np.float32([3, 1])}, {"w": np.float32([1, -3])}
    >>> merge_state_dicts("sce", base, {"a": a, "b": b})["w"].tolist()
    [2.0, -3.0]

    select_topk: share of the varying positions kept, 0 to 1. guard: how small energies count, see above.
    """
    selects = select_topk < 1

    def ranks(series: int, size: int, filled: int) -> tuple[int, ...]:
        return (min(max(int(filled * select_topk), 1 if select_topk > 0 else 0), filled),)

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        if selects:
            _select(chunk, known)
        weights = chunk.numbers(known["weights"])
        row_kernels().elected_mean(chunk.deltas, weights, _LEAST_SHARE, chunk.out)
        kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    selection = Selection(
        "variance", 1, lambda chunk, known: _spread(chunk)[None], ranks, count_filled=True, local=True
    )
    surveys: tuple[Survey, ...] = selection.surveys() if selects else ()
    return Steps(apply, (*surveys, _EnergySurvey(selects, guard == "absolute")), deltas=True)


def _spread(chunk: Chunk) -> NDArray[np.float32]:
    """Return the standard deviation across experts, which orders positions as the variance does."""
    deltas = chunk.deltas
    out = np.empty(deltas.shape[1], np.float32)
    row_kernels().spread(deltas, out)
    return out


def _select(chunk: Chunk, known: Statistics) -> None:
    """Zero the task vectors where experts differ least; what was selected is kept, as bits, for the next pass."""
    (limit,) = known["variance"][0]
    if limit is None:
        return
    kept = known.setdefault("selected", {})
    if chunk.start in kept:
        bits, chunk.carry["variance"] = kept[chunk.start]
        keep = np.unpackbits(bits, count=chunk.stop - chunk.start).view(np.bool_)
    else:
        spread = _spread(chunk)
        left = chunk.carry.get("variance", limit.within)
        chunk.carry["variance"] = left - kernels().magnitude_trim(spread, limit.pattern, left)
        keep = spread > 0
        if sum(bits.nbytes for bits, _ in kept.values()) < _MOST_KEPT:
            kept[chunk.start] = np.packbits(keep), chunk.carry["variance"]
    for deltas in chunk.deltas:
        kernels().apply_keep(deltas, keep, 1.0)


class _EnergySurvey:
    """The weights: mean squares of the selected task vectors, in float64 over fixed blocks."""

    def __init__(self, selects: bool, absolute: bool) -> None:
        self.selects = selects
        self.absolute = absolute

    def start(self) -> dict[int, float]:
        return {}

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        if self.selects:
            _select(chunk, known)
        sums = np.empty(blocks_of(chunk.deltas.shape[1]))
        for expert, deltas in enumerate(chunk.deltas):
            kernels().block_dots(deltas, deltas, sums)
            total = state.get(expert, 0.0)
            for value in sums.tolist():
                total += value
            state[expert] = total

    def close(self, state: Any) -> list[float]:
        return [state[expert] for expert in range(len(state))]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        for squares, size, statistics in zip(states, sizes, known, strict=True):
            energies = [square / size for square in squares]
            total = 0.0
            for energy in energies:
                total += energy
            even = total < _LEAST_ENERGY if self.absolute else total == 0
            statistics["weights"] = [1.0 / len(energies) if even else energy / total for energy in energies]
