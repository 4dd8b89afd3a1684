"""States on disk: trained once, loaded by later runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.checkpoints import CheckpointWriter, OutputTensor, plan_shards
from consilience.checkpoints.dtypes import dtype_from_name
from consilience.core.hashing import fingerprint, xxh3_hex
from consilience.core.jobs import MANIFEST, Job
from consilience.core.records import read_record
from consilience.errors import WorkError

if TYPE_CHECKING:
    from consilience.bench.experiments.family import State

__all__ = ["load_or_make", "read_state", "write_state"]

_FILE = "model.safetensors"


def load_or_make(folder: Path, request: Mapping[str, Any], make: Callable[[], State]) -> State:
    """Return the state in `folder` when it was made by the same request; else make it and put it there.

    A run that is killed leaves nothing behind that a later one would take for a finished state.
    """
    request = json.loads(json.dumps(request, default=str))
    if (folder / MANIFEST).is_file() and (folder / _FILE).is_file():
        made_by = read_record(folder / MANIFEST, "manifest", 1).get("request")
        if fingerprint(made_by) == fingerprint(request):
            return read_state(folder)
    with Job(folder, kind="experiment", request=request) as job:
        write_state(job.work, make())
        job.publish()
        job.check()  # stopped while it was made: it is kept
    return read_state(folder)


def write_state(folder: Path, state: State) -> None:
    """Write a state as one safetensors file, every tensor in its own type, and verify it."""
    import torch

    planned, raw = [], {}
    for name, tensor in state.items():
        dtype = dtype_from_name(str(tensor.dtype))
        if dtype is None or not torch.isfinite(tensor).all():
            raise WorkError(f"{name}: {tensor.dtype} numbers that cannot be kept, or NaN or infinity among them")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        planned.append(OutputTensor(name, dtype, tuple(tensor.shape)))
        raw[name] = (flat.view(torch.uint16) if dtype == "BF16" else flat).numpy()
    writer = CheckpointWriter(folder, plan_shards(planned, file_names=_FILE))
    writer.create()
    for name, values in raw.items():
        writer.write(name, 0, values)
    writer.finish()
    writer.verify({name: xxh3_hex(values) for name, values in raw.items()})


def read_state(folder: Path) -> State:
    """Read what `write_state` wrote."""
    from safetensors.torch import load_file

    return dict(load_file(folder / _FILE))
