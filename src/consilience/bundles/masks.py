"""Mask bundles: a multi-task model and one bit per weight and task stand for all experts of one base (TALL-masks).

The model of a task takes a weight from the multi-task model where the task's mask has it, and from the base elsewhere.
What is stored is base + multi-task vector, rounded as a merge would be, rather than the vector: then nothing is
computed when a task is loaded, and its weights are those of the method tall_mask bit for bit, in any number type.

    OUT/consilience.json            what it is: the base by names, shapes and content, tasks, thresholds, checksums
    OUT/shared/model.safetensors    the multi-task model, floating-point tensors only
    OUT/masks/0.bin, 1.bin, ...     per task the bits of those tensors in order, 8 to a byte, each tensor coded alone

Source: Wang et al. 2024, Localizing Task Information for Improved Model Merging and Compression, arXiv 2405.07813.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.header import read_header
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.open import open_checkpoint
from consilience.checkpoints.side_files import copy_side_files
from consilience.checkpoints.sources import Source
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.core.hashing import xxh3_hex
from consilience.core.jobs import MANIFEST, Job
from consilience.core.records import read_record
from consilience.errors import CheckpointError, Problems, RequestError, StorageError, VerificationError, did_you_mean
from consilience.merging.memory import as_array, as_source

__all__ = ["FORMAT", "VERSION", "MaskBundle", "Weights", "content_hash", "open_mask_bundle", "open_weights"]

FORMAT = "mask-bundle"
VERSION = 1

Weights = str | Path | Checkpoint | Mapping[str, Any]
"""A model: a reference that `open_checkpoint` takes, an opened checkpoint, or a state dict (name to array)."""

_CHUNK = 1 << 18
_TORCH_ONLY = ("BF16", "F8_E4M3", "F8_E5M2")


def open_weights(weights: Weights) -> tuple[str, Mapping[str, Source], Checkpoint | None]:
    """Return how a model is called, its tensors, and the checkpoint where it is one."""
    if isinstance(weights, Mapping):
        return "", {name: as_source(tensor) for name, tensor in weights.items()}, None
    opened = weights if isinstance(weights, Checkpoint) else open_checkpoint(weights)
    return opened.reference, opened.tensors, opened


def content_hash(source: Source) -> str:
    """Return the xxh3 checksum of a tensor's stored bytes."""
    digest = xxhash.xxh3_64()
    for start in range(0, source.numel, _CHUNK):
        digest.update(source.read_raw(start, min(start + _CHUNK, source.numel)).data)
    return digest.hexdigest()


def open_mask_bundle(folder: str | Path) -> MaskBundle:
    """Open what `create_mask_bundle` wrote; no weights are read.

    Raises RequestError where it is not a mask bundle or of a newer format, CheckpointError where files are damaged.
    """
    place = Path(folder)
    record = read_record(place / MANIFEST, FORMAT, VERSION)
    bundle = MaskBundle(place, record)
    problems = Problems()
    for task in record["tasks"]:
        path = place / task["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != task["bytes"]:
            problems.add(f"{path}: {'not there' if size is None else f'{size} bytes'}, expected {task['bytes']} bytes")
    if (found := sorted(bundle.shared)) != sorted(record["masks"]):
        problems.add(f"{place / 'shared'}: holds {len(found)} tensors, expected {len(record['masks'])}")
    problems.raise_if_any(CheckpointError, f"mask bundle {place}")
    return bundle


@dataclass(frozen=True)
class MaskBundle:
    """An opened mask bundle. `record` is the content of its consilience.json."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(task["name"] for task in self.record["tasks"])

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes: the experts it stands for, multi-task model, masks packed and as stored, and all files together."""
        files = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return {**self.record["sizes"], "files": files}

    @cached_property
    def shared(self) -> Mapping[str, Source]:
        """The tensors of the multi-task model."""
        tensors: dict[str, Source] = {}
        for file in self.record["files"]:
            component = file.rpartition("/")[0]
            for name, stored in read_header(self.folder / "shared" / file).tensors.items():
                tensors[f"{component}/{name}" if component else name] = stored
        return tensors

    def density(self, task: str) -> float:
        """Return the share of weights that a task's mask has."""
        place = self._place(task)
        weights = sum(source.numel for source in self.shared.values())
        return sum(int(masks[place][2]) for masks in self.record["masks"].values()) / max(weights, 1)

    def reconstruct(self, task: str, base: Weights | None = None) -> dict[str, Any]:
        """Return the model of a task as a state dict.

        base: the model the bundle was made for; by default where it was when the bundle was made. Arrays are of the
        base's kind; of a base on disk NumPy's, or PyTorch's where NumPy lacks the type.

        Raises RequestError for an unknown task, CheckpointError where the base is another one, VerificationError
        where a file of the bundle does not read back as written.
        """
        place = self._place(task)
        tensors, opened = self._base(base)
        restored = {}
        for name, source in tensors.items():
            raw = np.empty(source.numel, DTYPES[source.dtype].storage)
            for start, part in self._restored(name, source, place):
                raw[start : start + part.size] = part
            restored[name] = as_array(raw, source.dtype, source.shape, _like(base, name, source.dtype, opened))
        return restored

    def write(self, task: str, out: str | Path, base: Weights | None = None) -> None:
        """Write the model of a task as a folder of its own, with the side files of the base; streaming.

        Errors are those of `reconstruct`, and StorageError.
        """
        place = self._place(task)
        tensors, opened = self._base(base)
        shards = plan_shards(
            [OutputTensor(name, source.dtype, tuple(source.shape)) for name, source in tensors.items()],
            file_names=opened.weight_names if opened is not None else "model.safetensors",
        )
        request = {"bundle": self.record, "task": task, "files": [[shard.file, shard.size] for shard in shards]}
        with Job(Path(out), kind="mask bundle task", request=request) as job:
            writer = CheckpointWriter(job.work, shards)
            writer.create()
            checksums = {}
            for name, source in tensors.items():
                job.check()
                digest, itemsize = xxhash.xxh3_64(), DTYPES[source.dtype].itemsize
                for start, part in self._restored(name, source, place):
                    writer.write(name, start * itemsize, part)
                    digest.update(part.data)
                checksums[name] = digest.hexdigest()
            if opened is not None:
                copy_side_files(opened, job.work)
            writer.finish()
            writer.verify(checksums)
            job.publish()

    def _place(self, task: str) -> int:
        if task not in self.tasks:
            raise RequestError(f"mask bundle {self.folder}: no task {task!r}{did_you_mean(task, self.tasks)}")
        return self.tasks.index(task)

    def _base(self, base: Weights | None) -> tuple[Mapping[str, Source], Checkpoint | None]:
        """Open the base and check what can be checked without its content: names, types and shapes."""
        recorded = self.record["base"]
        if base is None and not recorded["reference"]:
            raise RequestError(f"mask bundle {self.folder}: it was made from a base in memory; give that base")
        _, tensors, opened = open_weights(recorded["reference"] if base is None else base)
        problems = Problems()
        for name in sorted({*tensors, *recorded["tensors"]}):
            dtype, shape, _ = recorded["tensors"].get(name, (None, None, None))
            source = tensors.get(name)
            found = None if source is None else (source.dtype, list(source.shape))
            wanted = None if dtype is None else (dtype, shape)
            if found != wanted:
                problems.add(f"tensor {name!r}: {_described(found)} in this base, {_described(wanted)} in the bundle's")
        problems.raise_if_any(CheckpointError, f"mask bundle {self.folder}: made for another base")
        return tensors, opened

    def _restored(self, name: str, base: Source, place: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield a tensor of a task as stored, piece by piece; what it was read from is checked at its end."""
        shared = self.shared.get(name)
        packed = self._packed(name, place) if shared is not None else None
        below, above = xxhash.xxh3_64(), xxhash.xxh3_64()
        for start in range(0, base.numel, _CHUNK):
            stop = min(start + _CHUNK, base.numel)
            raw = base.read_raw(start, stop)
            below.update(raw.data)
            if shared is not None and packed is not None:
                other = shared.read_raw(start, stop)
                above.update(other.data)
                bits = np.unpackbits(packed[start // 8 : -(-stop // 8)], count=stop - start)
                raw = np.where(bits.view(np.bool_), other, raw)
            yield start, raw
        if below.hexdigest() != self.record["base"]["tensors"][name][2]:
            raise CheckpointError(
                f"mask bundle {self.folder}: made for another base: tensor {name!r} has other numbers"
            )
        if shared is not None and above.hexdigest() != self.record["shared"][name]:
            raise VerificationError(f"mask bundle {self.folder}: shared tensor {name!r} is not as it was written")

    def _packed(self, name: str, place: int) -> NDArray[np.uint8]:
        """Return the bits of one tensor for one task, 8 to a byte."""
        masks: Mapping[str, Any] = self.record["masks"]
        offset = 0
        for other, found in masks.items():
            if other == name:
                break
            offset += found[place][0]
        size, checksum, _ = masks[name][place]
        path = self.folder / self.record["tasks"][place]["file"]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                coded = file.read(size)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}") from error
        if len(coded) != size or xxh3_hex(coded) != checksum:
            raise VerificationError(f"{path}: the mask of tensor {name!r} is not as it was written")
        return np.frombuffer(zlib.decompress(coded) if self.record["coding"] == "zlib" else coded, np.uint8)


def _like(base: Weights | None, name: str, dtype: str, opened: Checkpoint | None) -> Any:
    """Return something of the kind that an array of the result is to be."""
    if opened is None:
        assert isinstance(base, Mapping)
        return base[name]
    if dtype in _TORCH_ONLY:
        import torch

        return torch.empty(0)
    return None


def _described(found: tuple[str, list[int]] | None) -> str:
    return "missing" if found is None else f"{found[0]}{found[1]}"
