"""KnOTS: express the experts' updates of a layer in one shared basis, then merge there.

For each matrix, with task matrices tau_i = theta_i - theta_0 (B_i A_i of a LoRA expert, its scale included):

1. the singular value decomposition of all task matrices side by side, [tau_1 .. tau_T] = U diag(s) [V_1 .. V_T]; values
   of at most singular_value_threshold are dropped;
2. expert i's components are diag(s) V_i = U^T tau_i;
3. merge the components of all matrices of the model together: "ties" keeps the `density` share of largest magnitude of
   each expert (one entry more, as the authors do), elects signs and combines what agrees; "task_arithmetic" combines
   what is kept without a vote;
4. theta = theta_0 + lambda * U (merged components).

All other tensors get lambda times the weighted mean of the task vectors (or stay, `rest: base`).

For LoRA experts nothing larger than the adapters is decomposed; for whole models it costs an eigendecomposition per
matrix and pass. The sign of a singular direction is arbitrary, so that where a vote is a draw no sign is elected and
the entry is dropped (the authors take the majority's); equal singular values leave the basis itself arbitrary.

Use: LoRA experts, whose updates lie in different subspaces so that a vote on the entries finds little agreement.
Avoid: fully fine-tuned experts, whose updates share directions as they are, at a far higher cost.

Source: Stoica et al. 2024, Model merging with SVD to tie the KnOTS, arXiv 2410.19735; code gstoica27/KnOTS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import kernels
from consilience.merging.matrix import Rest, matrices
from consilience.merging.method import Between, PerExpert, Regex, Share, each, method
from consilience.merging.sparsify import Magnitude
from consilience.merging.spectral import TaskMatrices
from consilience.merging.steps import Chunk, Statistics, Steps, Survey
from consilience.merging.task_vectors import task_vector_steps
from consilience.merging.whole import Whole

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 20  # components of all experts at a time, at least


@method(base="required", laws=("idempotent", "zero_weight", "permutation"))
def knots(
    merge_method: Literal["ties", "task_arithmetic"] = "ties",
    weight: PerExpert[float] = each(1.0),
    density: PerExpert[Share] = each(0.2),
    lambda_: float = 1.0,
    merge_function: Literal["mean", "sum"] = "mean",
    singular_value_threshold: Annotated[float, Between(0.0)] = 1e-5,
    concat_across_output: bool = True,
    include: Regex = "",
    exclude: Regex = "",
    rest: Rest = "mean",
) -> Steps:
    """Merge in the basis that all experts share.

    >>> import numpy as np
    >>> from consilience import merge_state_dicts
    >>> base = {"w": np.zeros((2, 2), np.float32)}
    >>> a, b = {"w": np.float32([[4, 0], [0, 1]])}, {"w": np.float32([[2, 0], [0, -3]])}
    >>> merge_state_dicts("knots", base, {"a": a, "b": b}, density=1.0)["w"].round(4).tolist()
    [[3.0, 0.0], [0.0, -3.0]]

    merge_method: what merges the components. weight: coefficient of each expert, before the vote. density: share of
    each expert's components kept, 0 to 1. lambda: coefficient of the merged change. merge_function: the mean, divided
    by the weights of the experts that take part in an entry, or the sum. singular_value_threshold: absolute.
    concat_across_output: task matrices (outputs x inputs) are put side by side and share a basis of the outputs; false:
    on top of each other, a basis of the inputs. include, exclude: which matrices are taken. rest: what the others get.
    """
    experts = len(weight)
    trim = Magnitude(experts, lambda expert, size: min(int(density[expert] * size) + 1, size))
    trims = min(density) < 1
    mean = task_vector_steps(weight, lambda_ / experts)

    def pieces(whole: Whole) -> Iterator[tuple[Tensor, Chunk]]:
        basis = _Basis(TaskMatrices(whole), singular_value_threshold, concat_across_output)
        return basis.pieces()

    def merged(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        if trims:
            trim.apply(chunk, known)
        weights = chunk.numbers(weight)
        kernels().weighted_sum(chunk.deltas, weights, chunk.out)
        if merge_method == "ties":
            draw = chunk.out == 0
            kernels().consensus(chunk.deltas, weights, int(merge_function == "mean"), 1, chunk.out)
            chunk.out[draw] = 0
        elif merge_function == "mean":
            share = weights @ (chunk.deltas != 0)
            chunk.out /= np.where(share == 0, chunk.out.dtype.type(1), share)
        return chunk.out

    def whole(tensor: Whole, known: Statistics) -> Tensor:
        import torch

        base = tensor.base()
        if not any(weight) or not lambda_:
            return base
        change = base if concat_across_output else base.T
        for left, chunk in pieces(tensor):
            values = torch.from_numpy(merged(chunk, known)).to(left.device)
            change.addmm_(left, values.reshape(left.shape[1], -1), alpha=lambda_)
        return base

    def apply(chunk: Chunk, known: Statistics) -> NDArray[Any]:
        if rest == "base":
            assert chunk.base is not None
            return chunk.base
        return mean.apply(chunk, known)

    selects = matrices(include, exclude)
    return Steps(
        apply,
        tuple(_ComponentSurvey(survey, pieces) for survey in trim.surveys(())) if trims else (),
        "global",
        shared=(include, exclude, singular_value_threshold, concat_across_output, *density),
        deltas=True,
        whole=whole,
        selects=selects,
        surveyed=selects,
    )


class _Basis:
    """The left singular vectors of the task matrices side by side, and the experts' components in them."""

    def __init__(self, tasks: TaskMatrices, threshold: float, across_output: bool) -> None:
        self.tasks = tasks
        self.across_output = across_output
        self.width = tasks.columns if across_output else tasks.rows
        self.left = self._left(threshold)

    def pieces(self) -> Iterator[tuple[Tensor, Chunk]]:
        """Yield some of the directions and all experts' components in them, which are at most about a tensor."""
        carry: dict[str, Any] = {}
        rows = max(max(self.tasks.rows * self.tasks.columns, _PIECE) // (self.tasks.count * self.width), 1)
        for start in range(0, self.left.shape[1], rows):
            left = self.left[:, start : start + rows]
            components = np.stack([self._components(i, left) for i in range(self.tasks.count)])
            size, out = components.shape[1], np.empty_like(components[0])
            shape = (left.shape[1], self.width)
            yield left, Chunk(self.tasks.tensor, shape, 0, size, components, None, (), out, None, carry, True)

    def _factors(self, index: int) -> tuple[Tensor, Tensor] | None:
        found = self.tasks.factors(index)
        return found if found is None or self.across_output else (found[1].T, found[0].T)

    def _matrix(self, index: int) -> Tensor:
        return self.tasks[index] if self.across_output else self.tasks[index].T

    def _components(self, index: int, left: Tensor) -> NDArray[Any]:
        from consilience.merging.singular import product

        factors = self._factors(index)
        if factors is None:
            made = product(left.T.double(), self._matrix(index))
        else:
            made = product(left.T.double() @ factors[0].double(), factors[1])
        values: NDArray[Any] = made.cpu().numpy().reshape(-1)
        return values

    def _left(self, threshold: float) -> Tensor:
        from consilience.merging.singular import RANK

        count = range(self.tasks.count)
        factors = [pair for index in count if (pair := self._factors(index)) is not None]
        if len(factors) == len(count):
            left, values = _of_factors(factors)
        else:
            left, values = _of_matrices(self._matrix, len(count))
        largest = float(values[0]) if len(values) else 0.0
        kept = int((values > max(threshold, RANK * largest)).sum())
        dtype = factors[0][0].dtype if len(factors) == len(count) else self.tasks.base.dtype
        return left[:, :kept].to(dtype)


def _of_factors(factors: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return left singular vectors and values of [B_1 A_1 .. B_T A_T] in float64, from thin factors."""
    import torch

    from consilience.merging.singular import svd

    if not any(left.shape[1] for left, _ in factors):
        return factors[0][0], torch.zeros(0)
    outer, upper = torch.linalg.qr(torch.cat([left for left, _ in factors], 1).double())
    inner = [torch.linalg.qr(right.T.double(), mode="r").R.T for _, right in factors]
    parts = upper.split([left.shape[1] for left, _ in factors], 1)
    small = torch.cat([part @ lower for part, lower in zip(parts, inner, strict=True)], 1)
    turn, values, _ = svd(small)
    return outer @ turn, values


def _of_matrices(matrix: Callable[[int], Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Return left singular vectors and values of the matrices side by side in float64, from inner products."""
    import torch

    from consilience.merging.singular import eigen, gram, svd

    first = matrix(0)
    (rows, columns), wide, empty = first.shape, first.dtype == torch.float64, first[:, :0].double()
    del first
    nothing = empty, empty[0]
    if wide:  # inner products would lose digits
        beside = torch.cat([matrix(index) for index in range(count)], 1)
        if not beside.isfinite().all():
            return nothing
        left, values, _ = svd(beside)
        return left, values
    if rows <= count * columns:
        total = torch.zeros(rows, rows, dtype=torch.float64, device=empty.device)
        for index in range(count):
            one = matrix(index)
            if one.any():
                total += gram(one)
        if not total.any() or not total.isfinite().all():  # reading for the result names what is not finite
            return nothing
        squares, left = eigen(total)
        return left.flip(1), squares.clamp(min=0).sqrt().flip(0)
    inner = torch.zeros(count, columns, count, columns, dtype=torch.float64, device=empty.device)
    for i in range(count):
        one = matrix(i).T.double()
        for j in range(i + 1):
            products = one @ matrix(j).double()
            inner[i, :, j], inner[j, :, i] = products, products.T
    if not inner.isfinite().all():
        return nothing
    squares, right = eigen(inner.reshape(count * columns, -1))
    squares, right = squares.flip(0), right.flip(1)
    values = squares.clamp(min=0).sqrt()
    left = torch.zeros(rows, count * columns, dtype=torch.float64, device=empty.device)
    for i in range(count):
        left.addmm_(matrix(i).double(), right[i * columns : (i + 1) * columns])
    return left / values.clamp(min=torch.finfo(torch.float64).tiny), values


class _ComponentSurvey:
    """A survey of chunks, shown the components of each matrix instead of its entries."""

    def __init__(self, inner: Survey, pieces: Callable[[Whole], Iterator[tuple[Tensor, Chunk]]]) -> None:
        self.inner = inner
        self.pieces = pieces

    def start(self) -> list[Any]:
        return [0, self.inner.start()]

    def add_whole(self, whole: Whole, state: Any, known: Statistics) -> None:
        for _, chunk in self.pieces(whole):
            self.inner.add(chunk, state[1], known)
            state[0] += chunk.stop

    def close(self, state: Any) -> tuple[int, Any]:
        return state[0], self.inner.close(state[1])

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        found = [(size, state, own) for (size, state), own in zip(states, known, strict=True) if size]
        if found:
            counts, inner, own = zip(*found, strict=True)
            self.inner.finish(inner, counts, own)
