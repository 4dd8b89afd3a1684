"""An adapter as weights of its own: its stored factors, so that checkpoints of one run can be averaged."""

from __future__ import annotations

from pathlib import Path

from consilience.checkpoints.header import read_header
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.open import open_adapter
from consilience.checkpoints.side_files import find_side_files

__all__ = ["holds_factors", "open_factors"]

_RECORDS = {"consilience.json", "trajectory.json", "training_args.json"}


def open_factors(reference: str | Path, *, relative_to: Path | None = None) -> Checkpoint:
    """Open a LoRA adapter folder as a checkpoint whose tensors are the stored factors, under their stored names.

    Its side files are adapter_config.json and what lies beside it (tokenizer, licence); nothing of its sub-folders,
    no records of training. References and errors are those of `open_adapter`.
    """
    adapter = open_adapter(reference, relative_to=relative_to)
    (file,) = adapter.files
    found, _ = find_side_files(adapter.folder, ("",), {file.path})
    beside = [name for name in found if "/" not in name and name not in _RECORDS]
    return Checkpoint(
        str(reference),
        adapter.name,
        adapter.folder,
        read_header(file.path).tensors,
        adapters=(adapter,),
        side_files=("adapter_config.json", *beside),
        files=adapter.files,
        weight_names={"": file.path.name},
    )


def holds_factors(model: Checkpoint) -> bool:
    """Whether an opened checkpoint is an adapter's factors rather than a model."""
    return bool(model.adapters) and model.files == model.adapters[-1].files
