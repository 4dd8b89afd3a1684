"""AIM: add task vectors, less of them on the inputs that matter most to the base (activation-informed merging).

    theta = base + lambda * sum_i w_i (theta_i - base) * (1 - (1 - omega) a_c),      a = activation / max(activation)

The activation is the mean magnitude of each input channel c of a module in the base model on calibration text. The
last axis of a weight is relaxed by it (norm weights too); tensors without an activation, those that match `exclude`
(embeddings) and biases are not relaxed. omega 0.2 to 0.6 was found useful.

With one expert of weight 1 it relaxes any finished merge: name the merged model as the only expert. biases "base"
leaves biases at the base, as the authors' own task arithmetic does; their post-hoc form merges them.

Use: to keep what a strong base can do, on top of any merge of language models.
Avoid: calibration text unlike what the base is used for; bases that are to be forgotten.

Needs `aux: {activation: FOLDER}` of the base, gathered by `consilience statistics`.

Source: Nobari et al. 2025, arXiv 2502.02421; code ahnobari/ActivationInformedMerging.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.errors import WorkError
from consilience.merging.kernels import kernels
from consilience.merging.matrix import matrices
from consilience.merging.method import Aux, PerExpert, Regex, Share, each, method
from consilience.merging.steps import Chunk, Statistics, Steps
from consilience.merging.whole import Whole


@method(
    base="required",
    laws=("idempotent", "zero_weight", "permutation", "scale"),
    aux={"activation": Aux(per_expert=False, shape="columns", every=False)},
)
def aim(
    weight: PerExpert[float] = each(1.0),
    omega: Share = 0.4,
    lambda_: float = 1.0,
    biases: Literal["merge", "base"] = "merge",
    exclude: Regex = ".*embed",
) -> Steps:
    """Add task vectors, relaxed by the base's activations.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base, a = {"w": np.zeros((1, 2), np.float32)}, {"w": np.float32([[1, 1]])}
    >>> merge_state_dicts("aim", base, {"a": a}, aux={"activation": {"w": np.float32([1, 4])}}, omega=0)["w"].tolist()
    [[0.75, 0.0]]

    weight: coefficient of each task vector. omega: what is left of the change at the channel of the largest
    activation, 0 to 1. lambda: coefficient of their sum. biases: merged, or left at the base. exclude: tensors that
    are not relaxed.
    """

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        if biases == "base" and chunk.tensor.endswith("bias"):
            assert chunk.base is not None
            return chunk.base
        kernels().weighted_sum(chunk.deltas, chunk.numbers(weight), chunk.out)
        if "kept" in known:
            kept = chunk.numbers(known["kept"])
            chunk.out *= kept[np.arange(chunk.start, chunk.stop) % len(kept)]
        kernels().add_base(chunk.out, chunk.base, lambda_)
        return chunk.out

    relaxed = [matrices(exclude=exclude, ndim=ndim) for ndim in (1, 2)]
    return Steps(
        apply,
        (_ActivationSurvey(omega),),
        deltas=True,
        surveyed=lambda name, shape: any(chosen(name, shape) for chosen in relaxed),
    )


class _ActivationSurvey:
    """The share of the change that each input channel keeps."""

    def __init__(self, omega: float) -> None:
        self.omega = omega

    def start(self) -> dict[str, list[float]]:
        return {}

    def add_whole(self, whole: Whole, state: Any, known: Statistics) -> None:
        found = whole.aux("activation")
        if found is None:
            return
        activation = found.double().cpu().numpy()
        if not (activation.min(initial=0.0) >= 0 and np.isfinite(activation).all()):
            raise WorkError(
                f"tensor {whole.tensor!r}: its activation holds values below 0 or not finite; it is a mean of "
                "magnitudes: gather it again"
            )
        importance = activation / (activation.max(initial=0.0) or 1.0)
        state["kept"] = (1.0 - (1.0 - self.omega) * importance).tolist()

    def close(self, state: Any) -> Any:
        return state

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        for state, statistics in zip(states, known, strict=True):
            statistics.update(state)
