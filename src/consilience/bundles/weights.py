"""Models that go into a bundle, on disk or in memory, and the copies of them that a bundle holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.open import open_checkpoint
from consilience.checkpoints.side_files import copy_side_files
from consilience.checkpoints.sources import Source
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.core.hashing import fingerprint
from consilience.core.jobs import Job
from consilience.errors import Problems
from consilience.merging.memory import as_array, as_source

__all__ = [
    "Given",
    "Weights",
    "chunks",
    "content_hash",
    "copy_model",
    "differences",
    "is_float",
    "open_weights",
    "read_state",
    "write_resumable",
]

Weights = str | Path | Checkpoint | Mapping[str, Any]
"""A model: a reference that `open_checkpoint` takes, an opened checkpoint, or a state dict (name to array)."""

_CHUNK = 1 << 18


@dataclass(frozen=True)
class Given:
    """A model as it was given: its tensors, and the checkpoint where it is one."""

    reference: str
    tensors: Mapping[str, Source]
    checkpoint: Checkpoint | None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors when stored."""
        return sum(source.nbytes for source in self.tensors.values())

    @property
    def identity(self) -> str:
        """Checksum that tells this model from others: of files without reading large ones whole."""
        if self.checkpoint is not None:
            return self.checkpoint.fingerprint
        return fingerprint({name: [s.dtype, s.shape, content_hash(s)] for name, s in self.tensors.items()})


def open_weights(weights: Weights, base: str = "") -> Given:
    """Open a model; see `Weights`. The folder of an adapter alone is one of the model `base` names."""
    if base and isinstance(weights, str | Path) and (Path(weights) / "adapter_config.json").is_file():
        return open_weights(f"{base}+{weights}")
    if isinstance(weights, Mapping):
        return Given("", {name: as_source(tensor) for name, tensor in weights.items()}, None)
    opened = weights if isinstance(weights, Checkpoint) else open_checkpoint(weights)
    return Given(opened.reference, opened.tensors, opened)


def is_float(source: Source) -> bool:
    """Whether a tensor holds floating-point numbers."""
    return source.dtype in DTYPES and DTYPES[source.dtype].kind == "float"


def chunks(numel: int, size: int = _CHUNK) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges that cover a tensor.

    >>> list(chunks(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, numel, size):
        yield start, min(start + size, numel)


def content_hash(source: Source) -> str:
    """Return the xxh3 checksum of a tensor's stored bytes."""
    digest = xxhash.xxh3_64()
    for start, stop in chunks(source.numel):
        digest.update(source.read_raw(start, stop).data)
    return digest.hexdigest()


def differences(base: Mapping[str, Source], experts: Mapping[str, Mapping[str, Source]], problems: Problems) -> None:
    """Report every tensor of an expert that the base lacks, that it lacks, or that has another shape."""
    for name, tensors in experts.items():
        for tensor in sorted({*base, *tensors}):
            first, second = base.get(tensor), tensors.get(tensor)
            if first is None or second is None:
                problems.add(f"tensor {tensor!r}: not in {'the base' if first is None else f'expert {name!r}'}")
            elif tuple(first.shape) != tuple(second.shape):
                shapes = f"shape {list(second.shape)} in {name!r}, {list(first.shape)} in the base"
                problems.add(f"tensor {tensor!r}: {shapes}")
    for tensor, source in base.items():
        if source.dtype not in DTYPES:
            problems.add(f"tensor {tensor!r}: safetensors has no such number type")
    if not any(is_float(source) for source in base.values()):
        problems.add("base: it has no floating-point tensor")


def write_resumable(
    job: Job, prefix: str, writer: CheckpointWriter, tensors: Iterator[tuple[str, Iterator[NDArray[Any]]]]
) -> dict[str, str]:
    """Write tensors, piece by piece, with a journal line each; return their checksums and verify all of them.

    `tensors` yields names with their stored numbers in order. What the journal of an interrupted run holds, and reads
    back as it says, is kept: its pieces are not asked for.
    """
    writer.create()
    checksums: dict[str, str] = {}
    for name, pieces in tensors:
        job.check()
        entry = job.done.get(f"{prefix}{name}")
        if entry is not None and writer.checksum(name) == entry["checksum"]:
            checksums[name] = entry["checksum"]
            continue
        digest, position = xxhash.xxh3_64(), 0
        for piece in pieces:
            flat = np.ascontiguousarray(piece).reshape(-1)
            writer.write(name, position, flat)
            digest.update(flat.data)
            position += flat.nbytes
        checksums[name] = digest.hexdigest()
        job.record(f"{prefix}{name}", durable=False, checksum=checksums[name])
    writer.finish()
    writer.verify(checksums)
    return checksums


def copy_model(job: Job, folder: Path, tensors: Mapping[str, Source], like: Checkpoint | None) -> None:
    """Write tensors as a model folder, with the side files of `like`; resumes."""
    shards = plan_shards(
        [OutputTensor(name, source.dtype, tuple(source.shape)) for name, source in tensors.items()],
        file_names=like.weight_names if like is not None else "model.safetensors",
    )

    def pieces(source: Source) -> Iterator[NDArray[Any]]:
        for start, stop in chunks(source.numel):
            yield source.read_raw(start, stop)

    writer = CheckpointWriter(folder, shards)
    write_resumable(job, f"{folder.name}/", writer, ((name, pieces(source)) for name, source in tensors.items()))
    if like is not None:
        copy_side_files(like, folder)


def read_state(tensors: Mapping[str, Source]) -> dict[str, Any]:
    """Return tensors as a state dict of PyTorch tensors."""
    import torch

    like = torch.empty(0)
    state = {}
    for name, source in tensors.items():
        raw = np.empty(source.numel, DTYPES[source.dtype].storage)
        for start, stop in chunks(source.numel):
            raw[start:stop] = source.read_raw(start, stop)
        state[name] = as_array(raw, source.dtype, tuple(source.shape), like)
    return state
