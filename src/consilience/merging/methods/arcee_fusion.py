"""Arcee Fusion: take from one expert only the entries whose change matters most, leave the rest as in the base.

    importance = |expert - base| * KL(softmax(expert row) || softmax(base row)),   row: the last dimension

An entry is the expert's where its importance is at least median + 1.5 (q3 - q1) of the tensor's importances, q the
quartiles: an outlier by Tukey's rule. Probabilities are taken plus 1e-8. A 1-D tensor is one row.

Quartiles are exact here, found by counting, and divergences are computed in float64; the published code samples tensors
of more than a million entries and rounds to float32, so some entries near the threshold differ. The divergence compares
weights as if they were logits, which has no other justification than that it worked. Where three quarters of a tensor
are unchanged the rule takes whatever has changed.

Use: one expert of which only the strongest changes are wanted, without a parameter to choose.
Avoid: experts whose changes are spread evenly: few entries pass (one in ten of a normal distribution), most is lost.

Source: Arcee AI's fusion (no paper); mergekit's arcee_fusion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import change_kernels
from consilience.merging.method import method
from consilience.merging.selection import Selection
from consilience.merging.steps import Chunk, Statistics, Steps

_QUARTILES = (0.25, 0.5, 0.75)


@method(base="required", laws=("idempotent",), max_experts=1)
def arcee_fusion() -> Steps:
    """Take the outliers in importance from the expert.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a = {"w": np.zeros(8)}, {"w": np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 2.0])}
    >>> merge_state_dicts("arcee_fusion", base, {"a": a})["w"].tolist()[-2:]
    [0.1, 2.0]
    """
    selection = Selection(
        "importance",
        1,
        lambda chunk, known: _importance(chunk, known)[None],
        lambda series, size, filled: tuple(size - _place(q, size) for q in _QUARTILES),
        local=True,
    )

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        assert chunk.base is not None
        importance = _importance(chunk, known).astype(np.float32, copy=False)
        chunk.out[:] = chunk.base
        np.copyto(chunk.out, chunk.experts[0], where=importance >= np.float32(_threshold(importance, known)))
        return chunk.out

    return Steps(apply, selection.surveys(), whole_rows=True)


def _place(quantile: float, size: int) -> int:
    """Return the index of a quantile among sorted values."""
    return int(quantile * (size - 1))


def _importance(chunk: Chunk, known: Statistics) -> NDArray[Any]:
    """Return the importance of each entry; the divergences of the rows are computed in the first pass and kept."""
    assert chunk.base is not None
    row = chunk.shape[-1] if chunk.shape else 1
    kept = known.setdefault("divergence", {})
    if chunk.start not in kept:
        kept[chunk.start] = np.empty((chunk.stop - chunk.start) // row)
        change_kernels().row_divergence(chunk.base, chunk.experts[0], row, kept[chunk.start])
    importance: NDArray[Any] = chunk.experts[0] - chunk.base
    np.abs(importance, out=importance)
    importance.reshape(-1, row)[:] *= kept[chunk.start].astype(importance.dtype)[:, None]
    return importance


def _threshold(importance: NDArray[np.float32], known: Statistics) -> float:
    """Return the least importance that is taken."""
    limits = known["importance"][0]
    if None in limits:  # a quartile of so few entries is the smallest of them, and all are in this chunk
        ordered = np.sort(importance)
        first, median, third = (float(ordered[_place(q, ordered.size)]) for q in _QUARTILES)
    else:
        patterns = np.array([limit.pattern for limit in limits], np.uint32)
        first, median, third = patterns.view(np.float32).tolist()
    return median + 1.5 * (third - first)
