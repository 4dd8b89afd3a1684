"""Weights of opened checkpoints as tensors that can be computed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint

__all__ = ["StoredState", "float_state"]


class StoredState(Mapping[str, Tensor]):
    """The floating-point tensors of a checkpoint as float32 (float64 stays), each read when it is asked for."""

    def __init__(self, checkpoint: Checkpoint, names: Iterable[str]) -> None:
        wanted = set(names)
        self._sources = {
            name: source
            for name, source in checkpoint.tensors.items()
            if name in wanted and source.dtype.startswith(("F", "BF"))
        }

    def __getitem__(self, name: str) -> Tensor:
        source = self._sources[name]
        values = np.empty(source.numel, np.float64 if source.dtype == "F64" else np.float32)
        source.read(0, source.numel, values)
        return torch.from_numpy(values).reshape(tuple(source.shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def float_state(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, Tensor]:
    """Return those of the named tensors that are floating point, as float32 (float64 stays), in the file's order."""
    return dict(StoredState(checkpoint, names))
