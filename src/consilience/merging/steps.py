"""What the engine and a method say to each other: chunks in, values out, statistics in between.

A method gives `Steps`: surveys (passes that gather statistics) and one `apply`. The engine knows nothing else about a
method, and the in-memory merge drives the same steps, so both give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from consilience.merging.kernels import BLOCK, kernels

if TYPE_CHECKING:
    from consilience.merging.coefficients import Coefficients
    from consilience.merging.whole import Whole

__all__ = ["Chunk", "Selects", "Skippable", "Statistics", "Steps", "Survey", "WholeSurvey", "blocks_of", "every_tensor"]

Statistics = dict[str, Any]
"""What is known of one tensor. The entry "facts" (plain data) is shown to the user: it goes into the manifest."""

Selects = Callable[[str, tuple[int, ...]], bool]
"""A choice of tensors by name and shape."""


def every_tensor(name: str, shape: tuple[int, ...]) -> bool:
    """Choose all tensors."""
    return True


@dataclass(slots=True)
class Chunk:
    """Elements [start, stop) of one tensor of every input, decoded to working precision.

    `experts` has shape (experts, elements); `deltas` is the same memory with the base subtracted, so a step uses one
    or the other. `keys` are the experts' random streams for this tensor; `masks` replace random draws where given.
    `carry` is empty at the first chunk of each pass over a tensor and goes from chunk to chunk. `aux` has the
    artefacts of the tensor's own shape, by kind: (experts, elements), or (1, elements) where all experts share one.
    `expert_names` are for messages.
    """

    tensor: str
    shape: tuple[int, ...]
    start: int
    stop: int
    experts: NDArray[Any]
    base: NDArray[Any] | None
    keys: tuple[int, ...]
    out: NDArray[Any]
    masks: NDArray[np.bool_] | None = None
    carry: dict[str, Any] = field(default_factory=dict)
    subtracted: bool = False
    aux: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    expert_names: tuple[str, ...] = ()

    @property
    def deltas(self) -> NDArray[Any]:
        """The task vectors: expert minus base, in working precision."""
        if not self.subtracted:
            assert self.base is not None, "the plan gives a base to every method that asks for deltas"
            kernels().subtract_base(self.experts, self.base)
            self.subtracted = True
        return self.experts

    def numbers(self, values: Sequence[float]) -> NDArray[Any]:
        """Return coefficients in working precision."""
        return np.array(values, self.experts.dtype)


class Survey(Protocol):
    """One statistic pass over the chunks of every tensor.

    States are finished together: each tensor's alone for tensor scope, all at once, in the order of the tensors'
    names, for global scope. `known` is one dictionary per tensor, written by the passes before.
    """

    def start(self) -> Any:
        """Return an empty state for one tensor."""

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        """Count one chunk; chunks of a tensor come in order."""

    def close(self, state: Any) -> Any:
        """Return a tensor's state in a small form; global scope keeps one for every tensor of the model."""

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        """Write what was learned into the statistics of each tensor."""


@runtime_checkable
class Skippable(Protocol):
    """A survey of single tensors that earlier ones can make needless."""

    def settled(self, known: Statistics) -> bool:
        """Whether what is known of a tensor already holds what this survey would write."""


@runtime_checkable
class WholeSurvey(Protocol):
    """A statistic pass that looks at whole tensors; it reads only what it asks for. Otherwise as Survey."""

    def start(self) -> Any:
        """Return an empty state for one tensor."""

    def add_whole(self, whole: Whole, state: Any, known: Statistics) -> None:
        """Look at one tensor."""

    def close(self, state: Any) -> Any:
        """Return a tensor's state in a small form; global scope keeps one for every tensor of the model."""

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        """Write what was learned into the statistics of each tensor."""


Apply = Callable[[Chunk, Statistics], NDArray[Any]]
ApplyWhole = Callable[["Whole", Statistics], Any]


@dataclass(frozen=True)
class Steps:
    """A method bound to the parameters of one tensor.

    `idempotent`: byte-equal inputs (base included) give that input, which the engine then copies. `whole_rows`:
    chunks must not cut a row (last dimension). `scope`: where the statistics of the surveys are kept. `shared`: what
    global statistics depend on, which must then be the same for all tensors. `deltas`: only task vectors are asked
    for, never the experts, so that the base can be subtracted while decoding.

    `whole` makes a tensor at once: it is given all of it (PyTorch, on the CPU or a GPU) and returns the merged values
    in the tensor's shape. It makes those that it `selects`; `apply` makes the others. Surveys look at the tensors
    that are `surveyed`. `tolerance`: how far another number of threads or another device may take what `whole` makes,
    as a share of the largest change of a tensor. `linear` gives the same steps with coefficients of tensors, pieces or
    groups in place of the method's own; methods that do not add up task vectors have none.
    """

    apply: Apply
    surveys: tuple[Survey | WholeSurvey, ...] = ()
    scope: Literal["tensor", "global"] = "tensor"
    idempotent: bool = True
    whole_rows: bool = False
    shared: tuple[Any, ...] = ()
    deltas: bool = False
    whole: ApplyWhole | None = None
    selects: Selects = every_tensor
    surveyed: Selects = every_tensor
    tolerance: float = 1e-4
    linear: Callable[[Coefficients], Steps] | None = None

    def makes_whole(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether `whole` makes this tensor."""
        return self.whole is not None and self.selects(name, shape)


def blocks_of(elements: int) -> int:
    """Return how many reduction blocks a chunk of this many elements has."""
    return -(-elements // BLOCK)
