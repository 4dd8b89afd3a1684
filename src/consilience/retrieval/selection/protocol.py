"""What selection methods take and return.

A method is a function `name(candidates, ...) -> Objective` in the file `methods/name.py`; the objective says what each
candidate would add to what is chosen already, and `greedy.py` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Candidates", "Chosen", "Objective", "Reached", "Selection"]

Floats = NDArray[np.floating[Any]]
Reached = Literal["similarity", "graph"]


@dataclass(frozen=True)
class Candidates:
    """Checked candidates: `vectors` (n, d) of length 1, float32 or float64, and `relevance` (n,), float64, 0 or more.

    rows (n,), of `total`: where they stood before `top_n`; None where nothing was left out.
    """

    vectors: Floats
    relevance: NDArray[np.float64]
    rows: NDArray[np.int64] | None = None
    total: int | None = None

    def __len__(self) -> int:
        return len(self.relevance)

    @property
    def resolution(self) -> float:
        """Differences of similarities below this are rounding."""
        return 1e-12 if self.vectors.dtype == np.float64 else 1e-6

    def cosines(self, index: int) -> NDArray[np.float64]:
        """Return the cosines of one candidate with all, (n,), -1 to 1."""
        return np.asarray(self.vectors @ self.vectors[index], np.float64)

    def similarities(self, index: int) -> NDArray[np.float64]:
        """Return the similarities max(0, cosine) of one candidate with all, (n,), 0 to 1."""
        return np.maximum(self.cosines(index), 0.0)


class Objective(ABC):
    """What is maximised, given what has been added so far.

    submodular: gains never grow while candidates are added and are never negative; then old gains are bounds of new
    ones, greedy selection is within 1 - 1/e of the best set, and the budgeted form exists. tolerance: gains that differ
    by less are equal, and the lower index is taken.
    """

    submodular: ClassVar[bool] = False
    tolerance: float = 1e-12

    @abstractmethod
    def gains(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what each of some candidates would add now, (len(indices),)."""

    @abstractmethod
    def add(self, index: int) -> None:
        """Choose a candidate."""


@dataclass(frozen=True)
class Chosen:
    """A candidate that was chosen.

    index: its row. relevance: what the selection went by, 0 or more. gain: what it added to the objective when it was
    chosen. reached: "similarity", or "graph" where links brought in more than half of its score; hops: edges from the
    nearest start of the graph walk, None without a graph or a path.
    """

    index: int
    id: str | int
    relevance: float
    gain: float
    reached: Reached = "similarity"
    hops: int | None = None


@dataclass(frozen=True)
class Selection:
    """A chosen set, in the order in which it was chosen.

    objective: sum of the gains. coverage: sum over all candidates of relevance times similarity to the nearest chosen
    one, as a share of the sum of relevance, 0 to 1. mean_similarity: mean similarity (cosine, 0 below 0) over the pairs
    chosen, 0 to 1; 0 for fewer than two. relevance_sum: of those chosen. considered: how many candidates there were
    after `top_n`. nothing_similar: no candidate had a relevance above 0, so that these are the nearest by cosine. cost:
    of those chosen, in the unit of the costs given.
    """

    method: str
    chosen: tuple[Chosen, ...]
    coverage: float
    mean_similarity: float
    relevance_sum: float
    considered: int
    nothing_similar: bool = False
    cost: float | None = None
    objective: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", float(sum(item.gain for item in self.chosen)))

    @property
    def indices(self) -> tuple[int, ...]:
        """Rows of those chosen."""
        return tuple(item.index for item in self.chosen)

    @property
    def ids(self) -> tuple[str | int, ...]:
        """Ids of those chosen; rows where no ids were given."""
        return tuple(item.id for item in self.chosen)
