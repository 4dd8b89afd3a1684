"""The block shared by methods that find a merged matrix by minimising an objective over it, without data.

Most such objectives are quadratic,

    f(D) = sum_i ||(start + D - K_i) L_i^T||_F^2 / w_i = f(0) + <G, D> + <D C, D>,

so a step needs only the slope G at the start and the curvature C = sum_i L_i^T L_i / w_i, kept as a square matrix or,
where that is smaller, as stacked roots R with C = R^T R; the experts are read once. Rows of D are independent of each
other, so Adam runs on blocks of rows that fit the cache. Gradient descent with momentum is linear in D: its result
after any number of steps is a function of the eigenvalues of C and is evaluated as such, without iterating.

Adam: Kingma & Ba 2015, arXiv 1412.6980, as in PyTorch, betas 0.9 and 0.999, eps 1e-8.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from consilience.errors import WorkError
from consilience.merging.steps import Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.merging.whole import Whole

__all__ = [
    "NOT_LAYERS",
    "Quadratic",
    "TOLERANCE",
    "RateUnit",
    "adam",
    "record_objective",
    "root_mean_square",
    "squared_norm",
]

NOT_LAYERS = r".*(embed|lm_head|norm|bias)"
"""Matrices that are not weights of linear layers, by name."""

RateUnit = Literal["absolute", "rms"]
"""What a learning rate counts in: as it is, or root mean squares of the matrix's task vectors."""

TOLERANCE = 1e-2
"""How far other threads or devices may take Adam, as a share of the largest change: where a gradient is rounding, its
sign is, and Adam steps by the learning rate whatever the size."""

_MOMENTUM = 0.9
_BLOCK = 1 << 18
_LEAST_ROWS = 256
_OVERSHOT = 1e8
_LEAST = 1e-30
_ROUNDING = 1e-9


def squared_norm(values: Tensor) -> float:
    """Return the sum of squares, added up in float64."""
    return _inner(values, values)


def root_mean_square(norms: Sequence[float], shape: Sequence[int]) -> float:
    """Return the RMS of the entries of all experts that change a tensor; `norms` are squared."""
    changed = [norm for norm in norms if norm > 0]
    return math.sqrt(sum(changed) / (len(changed) * math.prod(shape)))


def _inner(one: Tensor, other: Tensor) -> float:
    import torch

    rows = zip(_blocks(one), _blocks(other), strict=True)
    return math.fsum(float((a * b).sum(dtype=torch.float64)) for a, b in rows)


def _blocks(values: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of a matrix in blocks that fit the cache; on a GPU all of them."""
    size = max(values.shape[0] if values.is_cuda else _BLOCK // values.shape[1], _LEAST_ROWS)
    return tuple(values[start : start + size] for start in range(0, values.shape[0], size))


def adam(gradient: Callable[[Tensor, Tensor], None], variable: Tensor, learning_rate: float, steps: int) -> None:
    """Move `variable` by Adam, in place; `gradient(variable, out)` writes the gradient to `out`."""
    import torch

    variable.grad = torch.empty_like(variable)
    optimizer = torch.optim.Adam([variable], lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)
    with torch.no_grad():
        for _ in range(steps):
            gradient(variable, variable.grad)
            optimizer.step()
    variable.grad = None


class Quadratic:
    """sum_i ||(start + D - K_i) L_i^T||_F^2 / w_i as a function of the change D (rows, columns).

    `roots`: the number of rows of all L_i together, which decides how the curvature is kept.
    """

    def __init__(self, start: Tensor, roots: int) -> None:
        import torch

        columns = start.shape[1]
        self.start = start
        self.initial = 0.0
        self.size = 0.0
        self.slope = torch.zeros_like(start)
        self._stacked: list[Tensor] | None = [] if 2 * roots <= columns else None
        self._curvature = start.new_zeros(0 if self._stacked is not None else columns, columns)

    def add(self, target: Tensor, root: Tensor, weight: float) -> None:
        """Add the term of one expert: its target K, its root L and its weight w."""
        self.size += squared_norm(root)
        square = root.T @ root if root.shape[0] > root.shape[1] else None
        for start, goal, slope in zip(*map(_blocks, (self.start, target, self.slope)), strict=True):
            error = start - goal
            if square is None:
                residual = error @ root.T
                self.initial += squared_norm(residual) / weight
                slope.addmm_(residual, root, alpha=2 / weight)
            else:
                bent = error @ square
                self.initial += _inner(error, bent) / weight
                slope.add_(bent, alpha=2 / weight)
        if self._stacked is not None:
            self._stacked.append(root / math.sqrt(weight))
        elif square is not None:
            self._curvature.add_(square, alpha=1 / weight)
        else:
            self._curvature.addmm_(root.T, root, alpha=1 / weight)

    def value(self, change: Tensor) -> float:
        """Return the objective at a change. Rounding: about 1e-6 of the objective at the start."""
        curved = self._curved()
        total = self.initial
        for slope, part in zip(_blocks(self.slope), _blocks(change), strict=True):
            total += _inner(slope, part) + _inner(curved(part), part)
        return max(total, 0.0)

    def adam(self, learning_rate: float, steps: int) -> Tensor:
        """Return the change after this many steps of Adam."""
        import torch

        curved = self._curved()
        change = torch.zeros_like(self.slope)
        for slope, part in zip(_blocks(self.slope), _blocks(change), strict=True):

            def gradient(at: Tensor, out: Tensor, slope: Tensor = slope) -> None:
                curved(at, slope, out)

            block = part.clone()
            adam(gradient, block, learning_rate, steps)
            part.copy_(block)
        return change

    def descend(self, learning_rate: float, steps: int) -> Tensor:
        """Return the change after this many steps of gradient descent with momentum 0.9.

        In the eigenvectors q of C, D q = -g(eigenvalue) G q with g from a recursion of scalars.
        """
        import torch

        from consilience.merging.singular import eigen

        stacked = self._roots()
        square = self._curvature if stacked is None else stacked @ stacked.T
        values, vectors = eigen(square.to(torch.float64, copy=True))
        if stacked is not None:  # eigenvectors of R R^T to those of R^T R; what they leave out has no curvature
            held = values > 1e-12 * values.max()
            values, vectors = values[held], stacked.T.to(torch.float64) @ (vectors[:, held] / values[held].sqrt())
        gains = _gains(values, learning_rate, steps)
        flat = float(_gains(values.new_zeros(1), learning_rate, steps))
        basis = vectors.to(self.slope.dtype)
        bent = (self.slope @ basis) * (gains - flat).to(basis.dtype)
        return torch.addmm(self.slope, bent, basis.T, beta=-flat, alpha=-1.0)

    def record(self, whole: Whole, known: Statistics, change: Tensor, learning_rate: float) -> None:
        """Put the objective before and after a change into the facts of a tensor."""
        after, negligible = self.value(change), _ROUNDING * self.size
        record_objective(whole, known, self.initial, after, {"learning_rate": learning_rate}, negligible)

    def _roots(self) -> Tensor | None:
        import torch

        if self._stacked is None:
            return None
        return torch.cat(self._stacked) if self._stacked else self.start.new_zeros(0, self.start.shape[1])

    def _curved(self) -> Callable[..., Tensor]:
        """Return the function that gives change @ C, or with a slope the gradient: slope + 2 change @ C."""
        import torch

        stacked = self._roots()
        left, right = (None, self._curvature) if stacked is None else (stacked.T.contiguous(), stacked)

        def curved(change: Tensor, slope: Tensor | None = None, out: Tensor | None = None) -> Tensor:
            if left is not None:
                change = change @ left
            if slope is None:
                return change @ right
            return torch.addmm(slope, change, right, alpha=2.0, out=out)

        return curved


def _gains(values: Tensor, learning_rate: float, steps: int) -> Tensor:
    """Return g with change = -g * slope after gradient descent with momentum, for eigenvalues of the curvature."""
    gains, velocity = values.new_zeros(values.shape), values.new_zeros(values.shape)
    for _ in range(steps):
        velocity = _MOMENTUM * velocity + (1 - 2 * values * gains)
        gains = gains + learning_rate * velocity
    return gains


def record_objective(
    whole: Whole, known: Statistics, before: float, after: float, facts: Mapping[str, Any], negligible: float = 0.0
) -> None:
    """Put the objective before and after into the facts of a tensor; refuse a run that diverged, warn of a rise.

    `facts` are told with it. `negligible`: a value that is rounding for these task vectors.
    """
    known.setdefault("facts", {}).update({"objective": {"before": before, "after": after}, **facts})
    if not math.isfinite(after) or after > _OVERSHOT * max(before, negligible, _LEAST):
        raise WorkError(
            f"tensor {whole.tensor!r}: the optimisation diverged, its objective went from {before:.4g} to {after:.4g}; "
            "use a smaller learning_rate"
        )
    if after > before * (1 + 1e-5) + negligible:
        warnings.warn(
            'the optimisation ended above its start in some matrices (their "objective" rose): '
            "use a smaller learning_rate, or one in units of the task vectors",
            stacklevel=2,
        )
