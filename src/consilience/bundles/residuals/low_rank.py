"""Low rank: what an expert has beyond the shared weights, as the leading singular triplets of every matrix.

    theta_t - shared ~ U_r S_r V_r^T        stored as left = U_r sqrt(S_r), right = sqrt(S_r) V_r^T

r is `rank`, or int(density * min(rows, columns)) as the authors compute it. What is no matrix is kept
whole, and so is everything from density 1 on: then the expert comes back bit for bit.

Source: Lu et al. 2024, Twin-Merging, arXiv 2406.15479; code LZY-the-boys/Twin-Merging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.residuals.per_tensor import Excluded, Part, PerTensor, opened_parts
from consilience.bundles.weights import Given
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.sources import LowRank, Source, Stored
from consilience.errors import Problems

__all__ = ["KIND", "LowRankFactors"]

_EXACT = 768  # up to this size a whole decomposition in float64 takes a second or two; beyond it only what is kept


class LowRankFactors(PerTensor):
    """Leading singular triplets.

    density: share of a matrix's rank that is kept, 0 to 1; rank: that many instead, in every matrix. exclude,
    excluded, dtype: see `PerTensor`.
    """

    kind: ClassVar[str] = "low_rank"

    def __init__(
        self,
        density: float = 0.1,
        rank: int | None = None,
        exclude: Sequence[str] = (),
        excluded: Excluded = "own",
        dtype: str | None = None,
    ) -> None:
        super().__init__(exclude, excluded, dtype)
        self.density, self.rank = density, rank

    def settings(self) -> dict[str, Any]:
        """Return density or rank, and what `PerTensor` has."""
        kept = {"density": self.density} if self.rank is None else {"rank": self.rank}
        return {**kept, **super().settings()}

    def check(self, base: Given, experts: Mapping[str, Given], problems: Problems) -> None:
        """Report a density or rank that is out of range."""
        super().check(base, experts, problems)
        if self.rank is None and not 0 < self.density <= 1:
            problems.add(f"density: {self.density!r} is not above 0 and at most 1")
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            problems.add(f"rank: {self.rank!r} is not a whole number above 0")

    def rank_of(self, shape: Sequence[int]) -> int:
        """Return how many triplets of a matrix are kept.

        >>> LowRankFactors(density=1 - 0.9).rank_of((20, 30))  # 1 - 0.9 is a little less than 0.1
        1
        """
        return min(shape) if self.density >= 1 and self.rank is None else self._rank(min(shape))

    def _rank(self, full: int) -> int:
        return min(self.rank, full) if self.rank is not None else int(self.density * full)

    def parts(self, name: str, expert: str, source: Source, dtype: str) -> list[Part]:
        """Return both factors of a matrix; nothing, so that it is kept whole, of other tensors."""
        if len(source.shape) != 2 or self.rank_of(source.shape) == min(source.shape):
            return []
        rank = self.rank_of(source.shape)
        return [Part("left", dtype, (source.shape[0], rank)), Part("right", dtype, (rank, source.shape[1]))]

    def compress(self, name: str, expert: str, change: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the factors."""
        import torch

        from consilience.merging.singular import leading

        rank = self.rank_of(change.shape)
        wide = np.ascontiguousarray(change, np.float64 if min(change.shape) <= _EXACT else np.float32)
        kept = leading(torch.from_numpy(wide), rank)
        root = kept.values.double().sqrt().numpy()
        left, right = np.zeros((change.shape[0], rank)), np.zeros((rank, change.shape[1]))
        found = len(root)  # fewer than asked for where the change has a lower rank
        left[:, :found] = kept.left.double().numpy() * root
        right[:found] = root[:, None] * kept.right.double().numpy()
        return [left, right]

    @staticmethod
    def open(folder: Path, record: Mapping[str, Any], expert: str, shared: Checkpoint) -> Checkpoint:
        """Return the expert: shared + left @ right."""

        def make(source: Source, parts: Mapping[str, Stored]) -> Source:
            return LowRank(source, parts["right"], parts["left"], 1.0)

        return opened_parts(folder, record, expert, shared, make)


KIND = LowRankFactors
