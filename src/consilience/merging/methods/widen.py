"""WIDEN: how much each column of each expert changed is ranked inside that expert, and the ranks give the coefficients.

Weights are split into column lengths m and directions D = W / m. For expert i, base 0 and each column:
1. dm = |m_i - m_0| and dd = 1 - cos(D_i, D_0);
2. each of the two is ranked within the expert: S = place in ascending order / number of columns, equals in order;
3. score = softmax of S over the experts; where S > above_average_value_ratio * (mean of S over the expert's columns) it
   is score_calibration_value instead, so scores need not sum to 1;
4. theta = base + sum_i (score_i(dm) + score_i(dd)) / 2 * (theta_i - base), column by column.
1-D tensors (norms, biases) are not ranked: S = |theta_i - base| of each entry, scored by the same rule.

Columns are those of the input dimension; token embeddings (`embedding_patterns`) are transposed first, so that a column
is a token. Tensors of more axes count as (first axis, all others). The mean score of each expert, in the order of their
names, goes into the manifest for every tensor.

Use: experts whose changes differ in size by an order of magnitude: a fine-tuned model and one trained on.
Avoid: many experts with the published settings: about half the columns of each are added in full, which overshoots as
task arithmetic with lambda 1 does.

Differences from the published code: a column that is zero in one model only counts as turned by a right angle (dd = 1;
there NaN), in both as unchanged; cosine differences come from inner products with the changes, in float64, exact for
changes of any size. Vocabularies of unequal size need `tokenizer: union`.

Source: Yu et al. 2024, Extend Model Merging from Fine-Tuned to Pre-Trained LLMs via Weight Disentanglement, arXiv
2408.03092; yule-BUAA/MergeLLM.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels, row_kernels
from consilience.merging.kernels.elementary import exponential
from consilience.merging.method import Between, Regex, method
from consilience.merging.steps import Chunk, Statistics, Steps, blocks_of

_EMBEDDINGS = r".*(embed_tokens|word_embeddings|wte|embeddings\.word)\.weight$"

Sums = NDArray[np.float64]


@method(base="required", laws=("idempotent", "permutation"))
def widen(
    above_average_value_ratio: Annotated[float, Between(0.0)] = 1.0,
    score_calibration_value: Annotated[float, Between(0.0)] = 1.0,
    ranking: bool = True,
    embedding_patterns: Regex = _EMBEDDINGS,
) -> Steps:
    """Weigh columns by the rank of their change.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.eye(2)}
    >>> a, b = {"w": np.array([[1.0, 0], [0, 2]])}, {"w": np.array([[1.0, 0], [0.01, 1]])}
    >>> merge_state_dicts("widen", base, {"a": a, "b": b})["w"].round(3).tolist()
    [[1.0, 0.0], [0.01, 2.0]]

    above_average_value_ratio: a change above this many times its expert's mean is calibrated; a huge value turns
    calibration off. score_calibration_value: the score it then gets. ranking: false takes the differences themselves
    instead of their ranks. embedding_patterns: names of the tensors whose columns are rows of the stored tensor.
    """
    scoring = _Scoring(above_average_value_ratio, score_calibration_value, ranking, re.compile(embedding_patterns))

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        deltas = chunk.deltas
        if scoring.orientation(chunk) == "entries":
            deltas *= scoring.entry_scores(deltas, known["means"])
        else:
            _scale_columns(chunk, known["scores"], by_row=scoring.orientation(chunk) == "rows")
        kernels().weighted_sum(deltas, chunk.numbers([1.0] * len(deltas)), chunk.out)
        kernels().add_base(chunk.out, chunk.base, 1.0)
        return chunk.out

    return Steps(apply, (_ColumnSurvey(scoring),), whole_rows=True, deltas=True)


class _Scoring:
    """How changes become scores, and along which axis a tensor has its columns."""

    def __init__(self, ratio: float, calibrated: float, ranking: bool, embeddings: re.Pattern[str]) -> None:
        self.ratio = ratio
        self.calibrated = calibrated
        self.ranking = ranking
        self.embeddings = embeddings

    def orientation(self, chunk: Chunk) -> str:
        """Return what has a score of its own: "rows" or "columns" of the stored tensor, or its "entries"."""
        if len(chunk.shape) < 2:
            return "entries"
        return "rows" if len(chunk.shape) == 2 and self.embeddings.match(chunk.tensor) else "columns"

    def entry_scores(self, deltas: NDArray[Any], means: Sequence[float]) -> NDArray[Any]:
        """Return the scores of single entries: shape (experts, elements)."""
        scores: NDArray[Any] = self._scores(np.abs(deltas).astype(np.float64), np.array(means)).astype(deltas.dtype)
        return scores

    def column_scores(self, changes: Sums) -> Sums:
        """Return the mean scores of the two kinds of change: from (2, experts, columns) to (experts, columns)."""
        columns = changes.shape[2]
        kinds = []
        for change in changes:
            if self.ranking:
                places = np.empty(change.shape)
                order = np.argsort(change, axis=1, kind="stable")
                np.put_along_axis(places, order, np.arange(columns)[None, :] / columns, axis=1)
                # (columns - 1) / 2 is the exact mean of the places; a rounded one could differ from the place in it
                kinds.append(self._scores(places, np.full(len(change), (columns - 1) / 2 / columns)))
            else:
                means = [math.fsum(row) / columns for row in change.tolist()]
                kinds.append(self._scores(change, np.array(means)))
        scores: Sums = (kinds[0] + kinds[1]) / 2
        return scores

    def _scores(self, significance: Sums, means: Sums) -> Sums:
        powers = exponential(significance - significance.max(axis=0))
        total = np.zeros(powers.shape[1])
        for row in powers:
            total += row
        powers /= total
        powers[significance > self.ratio * means[:, None]] = self.calibrated
        return powers


def _scale_columns(chunk: Chunk, scores: Sums, *, by_row: bool) -> None:
    """Multiply the task vectors by the score of their column, in place."""
    deltas, row = chunk.deltas, chunk.shape[-1]
    first, count = chunk.start // row, (chunk.stop - chunk.start) // row
    scores = scores.astype(deltas.dtype)
    tiles = deltas.reshape(len(deltas), count, row)
    if by_row:
        tiles *= scores[:, first : first + count, None]
    else:
        group = scores.shape[1] // row
        tiles *= scores.reshape(len(scores), group, row)[:, np.arange(first, first + count) % group]


class _ColumnSurvey:
    """Inner products, in float64, of every column of the base and of its changes; of 1-D tensors the mean change."""

    def __init__(self, scoring: _Scoring) -> None:
        self.scoring = scoring

    def start(self) -> dict[str, Any]:
        return {}

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        orientation = self.scoring.orientation(chunk)
        count = len(chunk.deltas)
        if orientation == "entries":
            sums = np.empty(blocks_of(chunk.deltas.shape[1]))
            for expert, deltas in enumerate(chunk.deltas):
                kernels().block_norms(deltas, sums)
                state.setdefault("sizes", [0.0] * count)[expert] += math.fsum(sums.tolist())
            return
        if len(chunk.shape) > 2:
            warnings.warn(
                "widen: tensors of more than two axes are taken as matrices of (first axis, all others)", stacklevel=2
            )
        columns, first = math.prod(chunk.shape[1:]), chunk.start // chunk.shape[-1]
        if orientation == "rows":
            columns = chunk.shape[0]
        sums = state.setdefault("sums", np.zeros((1 + 2 * count, columns)))
        assert chunk.base is not None
        pairs = [(chunk.base, chunk.base)]
        for deltas in chunk.deltas:
            pairs += [(deltas, chunk.base), (deltas, deltas)]
        for line, (a, b) in zip(sums, pairs, strict=True):
            if orientation == "rows":
                row_kernels().row_dots(a, b, chunk.shape[-1], line[first : first + a.size // chunk.shape[-1]])
            else:
                row_kernels().column_dots(a, b, chunk.start, line)

    def close(self, state: Any) -> Any:
        return state

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        for state, size, statistics in zip(states, sizes, known, strict=True):
            if "sizes" in state:
                statistics["means"] = [total / size for total in state["sizes"]]
            else:
                scores = self.scoring.column_scores(_changes(state["sums"]))
                statistics["scores"] = scores
                statistics["facts"] = {"mean_score": [round(float(row.mean()), 6) for row in scores]}


def _changes(sums: Sums) -> Sums:
    """Return, for each expert and column, how much length and direction changed: shape (2, experts, columns).

    From |W_0|^2 and, per expert, d.W_0 and |d|^2, d its change: nothing large is subtracted from something large.
    """
    base, across, squares = sums[0], sums[1::2], sums[2::2]
    squared = np.maximum(base + (2 * across + squares), 0.0)
    length, before = np.sqrt(squared), np.sqrt(base)
    together, inner = length * before, base + across
    with np.errstate(divide="ignore", invalid="ignore"):
        longer = np.abs(2 * across + squares) / (length + before)
        apart = np.maximum(base * squares - across * across, 0.0)
        turned = np.where(inner > 0, apart / (together * (together + inner)), 1.0 - inner / together)
    longer = np.where(length + before > 0, longer, 0.0)
    turned = np.where(together > 0, turned, ((length > 0) != (before > 0)).astype(np.float64))
    return np.stack((longer, turned))
