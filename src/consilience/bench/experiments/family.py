"""What an experiment needs to know of a kind of models: how base and experts are made, how a state is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Family", "Split", "State"]

State = dict[str, "Tensor"]
"""The weights of a model that take part in merging, by tensor name; what all models share stays with the family."""

Split = Literal["dev", "test"]


class Family(Protocol):
    """One kind of models and the tasks their experts are trained for. One file per family."""

    @property
    def name(self) -> str:
        """What the family is called: a folder of the cache."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in a fixed order."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides what `base`, `expert` and `multitask` make, as plain data.

        Architecture, data hashes, steps, learning rates, and a number to raise when the code changes the result.
        """
        ...

    def base(self, seed: int) -> State:
        """Make or load the model that all experts of a seed start from."""
        ...

    def expert(self, task: str, seed: int) -> State:
        """Fine-tune the base on a task's train split."""
        ...

    def multitask(self, tasks: Sequence[str], seed: int) -> State:
        """Fine-tune the base on several tasks together."""
        ...

    def scores(self, state: State, task: str, split: Split) -> NDArray[np.float64]:
        """Return one score per example of a split, always in the same order; higher is better (1 right, 0 wrong)."""
        ...
