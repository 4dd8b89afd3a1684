"""The block shared by the spectral methods: which tensors are taken as matrices, their task matrices, the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from consilience.merging.matrix import Rest, matrices, rest_steps
from consilience.merging.steps import Chunk, Statistics, Steps, Survey
from consilience.merging.whole import Whole

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.merging.singular import Triplets

__all__ = ["TaskMatrices", "orthogonalised", "spectral_steps"]


class TaskMatrices:
    """The task matrices of one tensor, expert minus base, read when asked for; the base is kept.

    Those of LoRA experts are made of their factors, so that they have the adapter's rank exactly.
    """

    def __init__(self, whole: Whole) -> None:
        self.tensor = whole.tensor
        self.rows, self.columns = whole.shape
        self.count = whole.count
        self.expert_names = whole.expert_names
        self._whole = whole
        self._base: Tensor | None = None

    def forget(self) -> None:
        """Let go of the base's memory until it is asked for again."""
        self._base = None

    def factors(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Return thin factors of one task matrix where it has some (and they are finite: else reading it refuses)."""
        found = self._whole.factors(index)
        return found if found is not None and all(bool(factor.isfinite().all()) for factor in found) else None

    @property
    def smaller(self) -> int:
        """The largest rank that a task matrix can have."""
        return min(self.rows, self.columns)

    @property
    def base(self) -> Tensor:
        """The base's matrix."""
        if self._base is None:
            self._base = self._whole.base()
        return self._base

    def __getitem__(self, index: int) -> Tensor:
        """Return one task matrix."""
        factors = self.factors(index)
        return factors[0] @ factors[1] if factors is not None else self._whole.expert(index).sub_(self.base)

    def total(self) -> Tensor:
        """Return the sum of the task matrices."""
        total = self[0]
        for index in range(1, self.count):
            total += self[index]
        return total

    def stacked_factors(self) -> tuple[Tensor, Tensor] | None:
        """Return thin factors whose product is the sum of the task matrices, None where there are none."""
        import torch

        found = [self.factors(index) for index in range(self.count)]
        pairs = [pair for pair in found if pair is not None]
        if len(pairs) < self.count or sum(pair[1].shape[0] for pair in pairs) >= self.smaller:
            return None
        return torch.cat([left for left, _ in pairs], 1), torch.cat([right for _, right in pairs])

    def leading(self, index: int, count: int) -> Triplets:
        """Return the leading singular triplets of one task matrix."""
        from consilience.merging.singular import leading, leading_of_product

        factors = self.factors(index)
        return leading(self[index], count) if factors is None else leading_of_product(*factors, count)


def orthogonalised(tasks: TaskMatrices, kept: int, weights: Sequence[float] | None = None) -> Tensor | None:
    """Return P(U) diag(weights * S) P(V) of the leading triplets of all task matrices, None where all are zero."""
    import torch

    from consilience.merging.singular import polar

    found = [tasks.leading(index, kept) for index in range(tasks.count)]
    tasks.forget()
    left = torch.cat([triplets.left for triplets in found], 1)
    right = torch.cat([triplets.right for triplets in found])
    factors = weights if weights is not None else [1.0] * tasks.count
    values = torch.cat([triplets.values * factor for triplets, factor in zip(found, factors, strict=True)])
    if not len(values):
        return None
    del found
    made: Tensor = (polar(left)[0] * values.to(left.dtype)) @ polar(right)[0]
    return made


def spectral_steps(
    change: Callable[[TaskMatrices, Statistics], Tensor | None],
    alpha: float,
    include: str,
    exclude: str,
    rest: Rest,
    *,
    survey: Survey | None = None,
) -> Steps:
    """Return the steps of base + alpha * change; None is no change.

    The tensors that are not taken as matrices get alpha * the mean of the task vectors, or stay as in the base. A
    survey sees the matrices only, over the whole model.
    """
    selects = matrices(include, exclude)

    def whole(tensor: Whole, known: Statistics) -> Tensor:
        tasks = TaskMatrices(tensor)
        made = change(tasks, known) if alpha else None
        base = tasks.base
        return base if made is None else base.add_(made, alpha=alpha)

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        return rest_steps(rest, len(chunk.keys), alpha)(chunk, known)

    return Steps(
        apply,
        () if survey is None else (survey,),
        "tensor" if survey is None else "global",
        shared=() if survey is None else (include, exclude),
        deltas=True,
        whole=whole,
        selects=selects,
        surveyed=selects,
    )
