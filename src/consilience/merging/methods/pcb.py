"""PCB: parameters compete; each entry of each task vector gets a coefficient of its own.

Over the whole model, with T_i = theta_i - base, n experts, d weights, q = clamp_ratio, r = pcb_ratio:
1. A_i = |T_i| between the magnitudes at places int(d q) and int(d (1 - q) - 1) of its ascending order;
   C_i = sign(T_i) A_i; m_i = A_i on the way from the lower of the two to the upper, 0 to 1;
2. intra_i = exp(n m_i^2): what matters within a task; inter_i = tanh(T_i sum_j T_j): what agrees with the others;
3. score_i = intra_i * inter_i. Scores up to the one at place int(d (1 - r)) get the coefficient 0, those above it rise
   linearly to 1 at the largest score;
4. theta = base + sum_i lambda_i C_i coefficient_i / max(sum_i coefficient_i, 1e-12).

These are the formulas of the authors' code; the paper writes softmax where it has exp and tanh. inter "normalized" is
that of its script for images, tanh(T_i sum_j sign(T_j) m_j), which goes with clamp_ratio 0.01. Scores are computed in
float64 with exp(n (m^2 - 1)), a factor that cancels in step 3, so that no number of experts overflows, and ranked as
float32.

Fails with few weights (pcb_ratio * d below 2; one entry per expert is kept then, with a warning), and where a change
sits in a smaller share of the weights than clamp_ratio: clamping then cuts it to nothing (a warning says so). An expert
that equals the base is refused. An expert all of whose changes have one size counts as m = 1 everywhere.

Use: several experts that compete for the same weights, with a little validation data for lambda.
Avoid: one expert, or experts that equal the base; adapters merged into few layers, whose many zeros make quantiles
meaningless.

Source: Du et al. 2024, Parameter Competition Balancing for Model Merging, arXiv 2410.02396; code
duguodong7/pcb-merging.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import uniform_bits
from consilience.errors import WorkError
from consilience.merging.kernels import competition_kernels, kernels
from consilience.merging.loading import BUFFERS
from consilience.merging.method import Between, Chosen, PerExpert, Share, each, method
from consilience.merging.selection import NOTHING, Limit, Selection
from consilience.merging.steps import Chunk, Statistics, Steps, Survey
from consilience.merging.surveys import Conclusion, Extremes, Together

Score = Literal["balanced", "intra", "inter", "random"]
Inter = Literal["tanh", "normalized"]


@method(base="required", laws=("permutation",))
def pcb(
    lambda_: PerExpert[float] = each(1.0),
    pcb_ratio: Share = 0.1,
    clamp_ratio: Annotated[float, Between(0.0, 0.5)] = 0.0001,
    inter: Inter = "tanh",
    score: Score = "balanced",
    coefficients: Chosen = -1,
) -> Steps:
    """Score, keep the best, balance.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros(6, np.float32)}
    >>> a, b = {"w": np.float32([4, 3, 1, 0, 1, 0])}, {"w": np.float32([2, -5, 0, 1, 0, 0])}
    >>> merge_state_dicts("pcb", base, {"a": a, "b": b}, pcb_ratio=0.5)["w"].tolist()
    [2.5, -2.0, 0.0, 0.0, 0.0, 0.0]

    lambda: coefficient of each task vector. pcb_ratio: share of entries kept per expert, above 0 to 1. clamp_ratio:
    share of magnitudes clamped at either end, 0 to 0.5. inter: how agreement is measured, see above. score: "balanced",
    or for comparison one factor alone ("intra", "inter") or "random" scores. coefficients: an expert whose
    coefficients (0 to 1) are given instead of merged weights.
    """
    if pcb_ratio <= 0:
        raise ValueError(f"pcb_ratio: {pcb_ratio} keeps nothing; use a share above 0, up to 1")
    contest = _Contest(len(lambda_), pcb_ratio, clamp_ratio, inter, score)

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        low, high = known["bounds"]
        limits, tops = known["limits"]
        scores = contest.scores(chunk, known)
        shares: NDArray[Any] = BUFFERS.array("pcb coefficients", scores.shape, chunk.out.dtype)
        competition_kernels().coefficients(scores, limits, tops, shares)
        if coefficients >= 0:
            chunk.out[:] = shares[coefficients]
            return chunk.out
        bounds = (chunk.numbers(low), chunk.numbers(high), chunk.numbers(lambda_))
        competition_kernels().balanced_sum(chunk.deltas, shares, *bounds, chunk.out)
        kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    return Steps(
        apply,
        contest.surveys(),
        "global",
        idempotent=coefficients < 0,
        shared=("pcb", pcb_ratio, clamp_ratio, inter, score),
        deltas=True,
    )


class _Contest:
    """The bounds of magnitudes, the scores, and the scores at which coefficients begin and end."""

    def __init__(self, experts: int, ratio: float, clamp: float, inter: Inter, score: Score) -> None:
        self.experts = experts
        self.ratio = ratio
        self.clamp = clamp
        self.inter = {"tanh": 1, "normalized": 2}[inter] if score in ("balanced", "inter") else 0
        self.intra = score in ("balanced", "intra")
        self.random = score == "random"

    def surveys(self) -> tuple[Survey, ...]:
        """Two passes over the magnitudes, two over the scores."""
        magnitudes = Selection("magnitudes", self.experts, lambda chunk, known: chunk.deltas, self._places)
        halves = Selection("halves", 2 * self.experts, self._halves, self._ranks, count_filled=True)
        first, second = magnitudes.surveys()
        third, fourth = halves.surveys()
        return (
            Together(first, Extremes("sizes", lambda chunk, known: np.abs(chunk.deltas))),
            Together(second, Conclusion(self._bounds)),
            Together(third, Extremes("extremes", self.scores)),
            Together(fourth, Conclusion(self._limits)),
        )

    def _places(self, expert: int, size: int, filled: int) -> tuple[int, ...]:
        """Return the descending ranks of the two bounds."""
        low = int(size * self.clamp)
        return size - low, size - max(int(size * (1 - self.clamp) - 1), low)

    def _bounds(self, known: Statistics, size: int) -> Statistics:
        for expert, (_, largest) in enumerate(known["sizes"]):
            if largest == 0:
                raise WorkError(
                    f"pcb: expert {expert + 1} of {self.experts} (by name) equals the base in every tensor; "
                    "where nothing changed there are no scores: leave it out"
                )
        smallest = [small for small, _ in known["sizes"]]
        pairs = [
            [_value(limit, small) for limit in found]
            for found, small in zip(known["magnitudes"], smallest, strict=True)
        ]
        low, high = np.array(pairs, np.float64).T.copy()
        for expert in np.flatnonzero(high == 0).tolist():
            warnings.warn(
                f"pcb: expert {expert + 1} of {self.experts} (by name) changes a smaller share of the weights than "
                f"clamp_ratio {self.clamp:g}, so that all its changes are clamped to 0; use a smaller one",
                stacklevel=2,
            )
        return {"bounds": (low, high)}

    def scores(self, chunk: Chunk, known: Statistics) -> NDArray[np.float32]:
        """Return the score of every entry: shape (experts, elements). Asked twice of a chunk, it computes once."""
        deltas = chunk.deltas
        scores: NDArray[np.float32] = BUFFERS.array("pcb scores", deltas.shape, np.float32)
        if chunk.carry.get("scored") == chunk.start:
            return scores
        chunk.carry["scored"] = chunk.start
        if self.random:
            for key, row in zip(chunk.keys, scores, strict=True):
                np.multiply(uniform_bits(key, chunk.start, row.size) >> np.uint32(8), np.float32(2.0**-24), out=row)
        else:
            competition_kernels().competition_scores(deltas, *known["bounds"], self.intra, self.inter, scores)
        return scores

    def _halves(self, chunk: Chunk, known: Statistics) -> NDArray[np.float32]:
        """Return the scores above 0 and, as magnitudes, those below, 0 elsewhere: shape (2 * experts, elements)."""
        scores = self.scores(chunk, known)
        halves = BUFFERS.array("pcb halves", (2 * self.experts, scores.shape[1]), np.float32)
        np.maximum(scores, np.float32(0), out=halves[: self.experts])
        np.minimum(scores, np.float32(0), out=halves[self.experts :])
        return halves

    def _limit_place(self, size: int) -> int:
        """Return the place, in ascending order, of the score up to which coefficients are 0."""
        return min(int(size * (1 - self.ratio)), max(size - 2, 0))

    def _ranks(self, series: int, size: int, filled: int) -> tuple[int, ...]:
        """Return the rank of the limit among the scores above 0, or below, and 0 where it is not there."""
        place = self._limit_place(size)
        rank = size - place if series < self.experts else place + 1
        return (rank if rank <= filled else 0,)

    def _limits(self, known: Statistics, size: int) -> Statistics:
        if int(size * (1 - self.ratio)) > self._limit_place(size):
            warnings.warn(
                f"pcb: pcb_ratio {self.ratio:g} of {size} weights is less than two; one entry per expert is kept",
                stacklevel=2,
            )
        limits = []
        for expert, (smallest, largest) in enumerate(known["extremes"]):
            ((above,), (below,)) = known["halves"][expert], known["halves"][self.experts + expert]
            if above != NOTHING:
                limits.append(_value(above, smallest))
            else:
                limits.append(0.0 if below == NOTHING else -_value(below, -largest))
        return {"limits": (np.array(limits), np.array([largest for _, largest in known["extremes"]]))}


def _value(limit: Limit | None, last: float) -> float:
    """Return the magnitude at a limit; `last` is the smallest, where the rank takes everything."""
    return last if limit is None else float(np.array(limit.pattern, np.uint32).view(np.float32))
