"""One tensor of every input as a whole, for methods that see matrices: read when asked for, kept by nobody.

Memory stays at what the method holds: every call reads and decodes anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.checkpoints.factors import factors
from consilience.checkpoints.sources import LowRank, Source
from consilience.merging.loading import Loader

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Whole"]

_PIECE = 1 << 20


class Whole:
    """A tensor of base and experts.

    `tensor` and `shape` say which; `count` experts named `expert_names`, in that order; `keys` are their random
    streams. Tensors come as `dtype` (float64 when an input is stored so, else float32) on `device`, in `shape`.
    """

    def __init__(
        self,
        tensor: str,
        shape: tuple[int, ...],
        experts: Sequence[Source],
        expert_names: Sequence[str],
        base: Source | None,
        aux: Mapping[str, Sequence[Source | None]],
        keys: tuple[int, ...],
        device: str,
        *,
        hashers: Sequence[Any] | None = None,
        refuse: Callable[[int, int], Exception] | None = None,
    ) -> None:
        self.tensor = tensor
        self.shape = shape
        self.count = len(experts)
        self.expert_names = tuple(expert_names)
        self.keys = keys
        self._experts = tuple(experts)
        self._base = base
        self._aux = aux
        self._device = device
        self._hashers = list(hashers) if hashers is not None else [None] * (len(experts) + 1)
        self._refuse = refuse
        self._checked: set[int] = set()
        sources = (*experts, *([base] if base is not None else []))
        self._width = np.float64 if any(source.dtype == "F64" for source in sources) else np.float32

    @property
    def has_base(self) -> bool:
        """Whether there is a base."""
        return self._base is not None

    @property
    def device(self) -> torch.device:
        """Where tensors are put."""
        import torch

        return torch.device(self._device)

    @property
    def dtype(self) -> torch.dtype:
        """The number type of all tensors given out."""
        import torch

        return torch.float64 if self._width is np.float64 else torch.float32

    def base(self) -> Tensor:
        """Return the base's tensor."""
        assert self._base is not None, "the plan gives a base to every method that asks for one"
        return self._read(self._base, self.count)

    def expert(self, index: int) -> Tensor:
        """Return an expert's tensor."""
        return self._read(self._experts[index], index)

    def delta(self, index: int) -> Tensor:
        """Return an expert's task vector: its tensor minus the base's."""
        assert self._base is not None, "the plan gives a base to every method that asks for one"
        values = self._values(self._experts[index], index)
        return self._placed(self._values(self._base, self.count, minus=values), self.shape)

    def aux(self, kind: str, index: int | None = None) -> Tensor | None:
        """Return an expert's artefact (or the one that all share) for this tensor, None where there is none."""
        sources = self._aux.get(kind, ())
        place = 0 if index is None or len(sources) == 1 else index
        source = sources[place] if place < len(sources) else None
        if source is None:
            return None
        values = np.empty(source.numel, self._width)
        source.read(0, source.numel, values)
        return self._placed(values, tuple(source.shape))

    def factors(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Return (B, A), with B @ A the task vector, where the expert is the base's tensor with LoRA, or as it is."""
        source = self._experts[index]
        if source == self._base and len(self.shape) == 2:  # the adapter leaves this tensor alone
            rows, columns = self.shape
            nothing = np.empty(0, self._width)
            return self._placed(nothing, (rows, 0)), self._placed(nothing, (0, columns))
        if not isinstance(source, LowRank) or source.base != self._base or len(self.shape) != 2:
            return None
        left, right = factors(source.a, source.b, source.fan_in_fan_out, self._width)
        return self._placed(left * self._width(source.scale), left.shape), self._placed(right.copy(), right.shape)

    def finish(self) -> None:
        """Read what the method did not look at, so that every input is hashed and checked."""
        for place, source in enumerate((*self._experts, *([self._base] if self._base is not None else []))):
            if place not in self._checked and (self._refuse is not None or self._hashers[place] is not None):
                self._read(source, place)

    def _read(self, source: Source, place: int) -> Tensor:
        return self._placed(self._values(source, place), tuple(source.shape))

    def _values(self, source: Source, place: int, minus: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the decoded elements, or take them from `minus` piece by piece and return that."""
        first = place not in self._checked
        self._checked.add(place)
        loader = Loader(source, self._hashers[place] if first else None, check=first and self._refuse is not None)
        values = np.empty(source.numel, self._width) if minus is None else minus
        for start in range(0, source.numel, _PIECE):
            stop = min(start + _PIECE, source.numel)
            part = values[start:stop] if minus is None else np.empty(stop - start, self._width)
            finite = loader.load(start, stop, part)
            if not finite and first and self._refuse is not None:
                raise self._refuse(start, stop)
            if minus is not None:
                minus[start:stop] -= part
        return values

    def _placed(self, values: Any, shape: tuple[int, ...]) -> Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(values)).reshape(shape).to(self._device)
