"""Weights on disk: open, describe, read, write, verify; folders with components; side files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilience.checkpoints.adapter import apply_adapter
    from consilience.checkpoints.layers import LayerScheme, find_layers
    from consilience.checkpoints.model import Adapter, Checkpoint, LowRankPair, WeightFile
    from consilience.checkpoints.open import open_adapter, open_checkpoint
    from consilience.checkpoints.side_files import copy_side_files
    from consilience.checkpoints.sources import LowRank, Source, Stored
    from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, Shard, plan_shards

__all__ = [
    "Adapter",
    "Checkpoint",
    "CheckpointWriter",
    "LayerScheme",
    "LowRank",
    "LowRankPair",
    "OutputTensor",
    "Shard",
    "Source",
    "Stored",
    "WeightFile",
    "apply_adapter",
    "copy_side_files",
    "find_layers",
    "open_adapter",
    "open_checkpoint",
    "plan_shards",
]

_MODULES = ("open", "model", "sources", "writer", "side_files", "layers", "adapter")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = import_module(f"{__name__}.{module}")
            if name in found.__all__:
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
