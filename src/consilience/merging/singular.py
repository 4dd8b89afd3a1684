"""Singular triplets and polar factors of matrices, through Gram matrices where that is exact enough.

All eigenvectors of the Gram matrix of the smaller side cost less than a singular value decomposition, and far less
where a matrix is long. The Gram is summed in float64. For entries of float32 that loses nothing: singular values have
an error of about 1e-8 of the largest at worst (one in float32 has 1e-7), vectors those of a decomposition in float64,
orthogonal to 1e-3 at worst for values of 1e-6 of the largest, which are the smallest taken. A float64 matrix would lose
digits and is decomposed as it is.

On a CPU eigenvectors come from LAPACK's syevr, which finds only those that are wanted and works in place: two float64
matrices at a time, where PyTorch's divide and conquer holds four.

Directions with singular values of at most 1e-6 of the largest are left out everywhere: they are rounding, and what a
decomposition returns for them is arbitrary. Matrices that are multiplied by a power of two give the same bits, scaled.
Everything runs where the matrix is, on the CPU or a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "RANK",
    "Triplets",
    "complement",
    "eigen",
    "gram",
    "leading",
    "leading_of_product",
    "polar",
    "product",
    "svd",
]

RANK = 1e-6
"""Singular values up to this share of the largest count as zero."""

_PANEL = 1 << 21  # entries in float64 at a time: 16 MB
_SMALL = 1024  # rows up to which divide and conquer is quicker and its memory does not matter
_FEW = 3  # only the wanted eigenvectors are found where they are at most this part of all


@dataclass(frozen=True)
class Triplets:
    """Singular triplets, the largest first: left (rows, k), values (k,) in float64, right (k, columns)."""

    left: Tensor
    values: Tensor
    right: Tensor


def gram(matrix: Tensor) -> Tensor:
    """Return matrix @ matrix.T in float64.

    >>> gram(torch.tensor([[3.0, 4.0]])).tolist()
    [[25.0]]
    """
    rows, columns = matrix.shape
    total = torch.zeros(rows, rows, dtype=torch.float64, device=matrix.device)
    width = max(_PANEL // max(rows, 1), 64)
    step = max(-(-rows // 4), 64)
    tops = range(0, rows, step)
    for start in range(0, columns, width):
        panel = matrix[:, start : start + width].double()
        for top in tops:  # the upper triangle is the mirror of the lower one
            total[top : top + step, : top + step].addmm_(panel[top : top + step], panel[: top + step].T)
    for top in tops:
        total[:top, top : top + step] = total[top : top + step, :top].T
    return total


def product(left: Tensor, matrix: Tensor) -> Tensor:
    """Return left @ matrix, computed in float64 by panels, in the number type of the matrix."""
    out = torch.empty(left.shape[0], matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    width = max(_PANEL // max(matrix.shape[0], 1), 64)
    for start in range(0, matrix.shape[1], width):
        out[:, start : start + width] = left @ matrix[:, start : start + width].double()
    return out


def eigen(square: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return eigenvalues of a symmetric float64 matrix, ascending, and eigenvectors by columns; overwrites the matrix.

    count: of the largest only (None: of all).
    """
    unit = _unit(square)
    rows = square.shape[0]
    wanted = rows if count is None else count
    square.div_(unit)
    if square.is_cuda or not rows:
        values, vectors = torch.linalg.eigh(square)
    else:
        from scipy.linalg import eigh

        part = (rows - wanted, rows - 1) if wanted <= rows // _FEW else None
        driver = "evd" if rows <= _SMALL and part is None else "evr"
        # transposed, the matrix lies as LAPACK wants it and is not copied
        found = eigh(square.numpy().T, driver=driver, subset_by_index=part, overwrite_a=True, check_finite=False)
        values, vectors = (torch.from_numpy(array) for array in found)
    return values[len(values) - wanted :] * unit, vectors[:, len(values) - wanted :]


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin singular value decomposition U, s, V of a matrix, as it is."""
    unit = _unit(matrix)
    try:
        left, values, right = torch.linalg.svd(matrix / unit, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # MKL's does not converge for some matrices with many values nearly equal; NumPy's library does
        parts = np.linalg.svd((matrix / unit).cpu().numpy(), full_matrices=False)
        left, values, right = (torch.from_numpy(part).to(matrix.device) for part in parts)
    return left, values * unit, right


def leading(matrix: Tensor, count: int, least: float = 0.0) -> Triplets:
    """Return the `count` leading singular triplets; fewer where fewer values are above `least` and the rank.

    >>> leading(torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, 0.0]]), 1).values.tolist()
    [3.0]
    """
    rows, columns = matrix.shape
    count = min(count, rows, columns)
    if count <= 0:
        return _none(matrix)
    if matrix.dtype == torch.float64:
        left, values, right = svd(matrix)
        kept = _above(values[:count], values[:1], least)
        return Triplets(left[:, :kept], values[:kept], right[:kept])
    wide = matrix if rows <= columns else matrix.T
    squares, vectors = eigen(gram(wide), count)
    values = squares.clamp(min=0).sqrt().flip(0)
    kept = _above(values, values[:1], least)
    values, vectors = values[:kept], vectors[:, count - kept :].flip(1)
    others = product(vectors.T / values[:, None], wide)
    near = vectors.to(matrix.dtype)
    return Triplets(near, values, others) if rows <= columns else Triplets(others.T, values, near.T)


def leading_of_product(left: Tensor, right: Tensor, count: int) -> Triplets:
    """Return the leading singular triplets of left @ right, thin factors, without forming the product."""
    if not left.shape[1]:
        return _none(left @ right)
    if left.shape[1] >= min(left.shape[0], right.shape[1]):
        return leading(left @ right, count)
    outer, upper = torch.linalg.qr(left.double())
    inner, lower = torch.linalg.qr(right.T.double())
    u, values, v = svd(upper @ lower.T)
    kept = _above(values[:count], values[:1])
    return Triplets((outer @ u[:, :kept]).to(left.dtype), values[:kept], (v[:kept] @ inner.T).to(right.dtype))


def polar(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the polar factor on the rank, U V of the singular value decomposition, and the singular values.

    >>> factor, values = polar(torch.tensor([[0.0, 2.0], [8.0, 0.0]]))
    >>> factor.tolist(), values.tolist()
    ([[0.0, 1.0], [1.0, 0.0]], [8.0, 2.0])
    """
    if matrix.numel() == 0:
        return matrix, matrix.new_zeros(0, dtype=torch.float64)
    if matrix.dtype == torch.float64:
        left, values, right = svd(matrix)
        kept = _above(values, values[:1])
        return left[:, :kept] @ right[:kept], values[:kept]
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares, vectors = eigen(gram(wide))
    values = squares.clamp_(min=0).sqrt().flip(0)
    kept = _above(values, values[:1])
    vectors = vectors[:, vectors.shape[1] - kept :].div_(squares[len(squares) - kept :] ** 0.25)
    factor = product(gram(vectors), wide)
    return factor if wide is matrix else factor.T, values[:kept]


def complement(left: Tensor) -> Tensor:
    """Return orthonormal columns that span what orthonormal columns leave of the space."""
    full: Tensor = torch.linalg.qr(left, mode="complete").Q
    return full[:, left.shape[1] :]


def _none(matrix: Tensor) -> Triplets:
    values = torch.zeros(0, dtype=torch.float64, device=matrix.device)
    return Triplets(matrix[:, :0], values, matrix[:0])


def _above(values: Tensor, largest: Tensor, least: float = 0.0) -> int:
    """Return how many of the values, the largest first, count as not zero."""
    return int((values > (largest * RANK).clamp(min=least)).sum())


def _unit(matrix: Tensor) -> float:
    """Return the power of two nearest to the largest entry: dividing by it is exact, and the same for all scales."""
    largest = float(matrix.abs().max())
    return math.ldexp(1.0, math.frexp(largest)[1]) if largest > 0 else 1.0
