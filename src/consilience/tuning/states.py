"""Weights of opened checkpoints as tensors that can be computed with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint

__all__ = ["float_state"]


def float_state(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, Tensor]:
    """Return those of the named tensors that are floating point, as float32 (float64 stays), in the file's order."""
    wanted = set(names)
    found = {}
    for name, source in checkpoint.tensors.items():
        if name in wanted and source.dtype.startswith(("F", "BF")):
            values = np.empty(source.numel, np.float64 if source.dtype == "F64" else np.float32)
            source.read(0, source.numel, values)
            found[name] = torch.from_numpy(values).reshape(tuple(source.shape))
    return found
