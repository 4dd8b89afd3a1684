"""The one writer of weights: plan the shards, preallocate them, write any range from any thread, verify by re-opening.

A planned set of shards is plain data; the writer keeps no open files and no buffers, so a resumed job continues with
what lies on disk.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.files import descriptor, read_into, write_from
from consilience.checkpoints.header import read_header
from consilience.checkpoints.sources import Stored
from consilience.core.atomic import storage_error, sync_folder, write_text_atomic
from consilience.errors import CheckpointError, Problems, StorageError, VerificationError

__all__ = ["CheckpointWriter", "OutputTensor", "Placement", "Shard", "plan_shards"]

_READ_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to be written: "component/name" or a plain name, its number type (safetensors name) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes when stored."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tensor lies in its file: `stored_name` is its name there, `offset` counts from the file's start."""

    tensor: OutputTensor
    stored_name: str
    offset: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One planned file: its relative path, its leading bytes (length and padded JSON), its tensors, its whole size.

    `index` is the relative path of the index that names this file, None where one file holds all of a component.
    """

    file: str
    header: bytes
    tensors: tuple[Placement, ...]
    size: int
    index: str | None


def plan_shards(
    tensors: Sequence[OutputTensor],
    *,
    max_shard_bytes: int = 5_000_000_000,
    metadata: Mapping[str, str] | None = None,
    file_names: Mapping[str, str] | str = "model.safetensors",
    components: bool = True,
) -> tuple[Shard, ...]:
    """Lay tensors out over files.

    >>> shards = plan_shards([OutputTensor("a", "F32", (2,)), OutputTensor("2_Dense/w", "BF16", (3,))])
    >>> [(shard.file, shard.size - len(shard.header)) for shard in shards]
    [('model.safetensors', 8), ('2_Dense/model.safetensors', 6)]

    A component ("2_Dense/...") goes to its sub-folder. What exceeds `max_shard_bytes` (of numbers) is cut into
    NAME-00001-of-0000N.safetensors in the given order; a larger tensor gets a file of its own. Within a file wider
    number types come first, so that every tensor is aligned. `file_names` is the file name, or one per component
    ("" is the folder itself; "model.safetensors" where it is not listed). Without `components` names are kept whole, in
    one folder.

    Raises ValueError for a repeated name.
    """
    parts: dict[str, list[OutputTensor]] = {}
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ValueError(f"tensor {tensor.name!r} is planned twice")
        seen.add(tensor.name)
        parts.setdefault(tensor.name.rpartition("/")[0] if components else "", []).append(tensor)
    planned: list[Shard] = []
    for component, members in parts.items():
        name = file_names if isinstance(file_names, str) else file_names.get(component, "model.safetensors")
        groups = list(_cut(members, max_shard_bytes))
        stem = name.removesuffix(".safetensors")
        folder = f"{component}/" if component else ""
        for number, group in enumerate(groups, start=1):
            single = len(groups) == 1
            file = name if single else f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
            index = None if single else f"{folder}{stem}.safetensors.index.json"
            named = [(tensor, tensor.name.removeprefix(folder)) for tensor in group]
            planned.append(_shard(folder + file, named, {"format": "pt", **(metadata or {})}, index))
    return tuple(planned)


def _cut(tensors: Iterable[OutputTensor], limit: int) -> Iterator[list[OutputTensor]]:
    group: list[OutputTensor] = []
    size = 0
    for tensor in tensors:
        if group and size + tensor.nbytes > limit:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += tensor.nbytes
    if group:
        yield group


def _shard(file: str, tensors: list[tuple[OutputTensor, str]], metadata: Mapping[str, str], index: str | None) -> Shard:
    ordered = sorted(tensors, key=lambda item: -DTYPES[item[0].dtype].itemsize)
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    positions: list[tuple[OutputTensor, str, int]] = []
    position = 0
    for tensor, stored_name in ordered:
        offsets = [position, position + tensor.nbytes]
        entries[stored_name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        positions.append((tensor, stored_name, position))
        position += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    placements = tuple(Placement(tensor, name, len(header) + first) for tensor, name, first in positions)
    return Shard(file, header, placements, len(header) + position, index)


class CheckpointWriter:
    """Writes planned shards below a folder, in any order, from any number of threads.

    >>> import tempfile
    >>> import numpy as np
    >>> shards = plan_shards([OutputTensor("w", "F32", (2,))])
    >>> writer = CheckpointWriter(Path(tempfile.mkdtemp()), shards)
    >>> writer.create()
    >>> writer.write("w", 0, np.float32([1, 2]))
    >>> writer.finish()
    >>> writer.verify()

    `create` may be called again on what an interrupted run left: files of the planned size and header keep their data.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder = folder
        self.shards = tuple(shards)
        self._places = {
            placement.tensor.name: (folder / shard.file, placement)
            for shard in self.shards
            for placement in shard.tensors
        }

    def create(self) -> None:
        """Reserve the space of every shard and write the headers.

        Raises StorageError with the bytes needed and free when the disk is too small.
        """
        missing = [shard for shard in self.shards if not self._is_there(shard)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for shard in missing:
                (self.folder / shard.file).unlink(missing_ok=True)
            needed, free = sum(shard.size for shard in missing), shutil.disk_usage(self.folder).free
            if needed > free:
                raise StorageError(
                    f"{self.folder}: the disk is full: {needed} bytes are needed and {free} are free; "
                    "free some space, or write to another disk, and run the same command again"
                )
            for shard in missing:
                path = self.folder / shard.file
                path.parent.mkdir(parents=True, exist_ok=True)
                _reserve(path, shard.size)
                write_from(path, 0, memoryview(shard.header))
                sync_folder(path.parent)
        except OSError as error:
            raise storage_error(self.folder, error) from error

    def _is_there(self, shard: Shard) -> bool:
        path = self.folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.size:
            return False
        found = bytearray(len(shard.header))
        read_into(path, 0, memoryview(found))
        return bytes(found) == shard.header

    def write(self, name: str, start_byte: int, buffer: Any) -> None:
        """Write a contiguous buffer at `start_byte` of a tensor; thread-safe.

        Raises ValueError when it does not lie within the tensor, StorageError when it cannot be written.
        """
        path, placement = self._places[name]
        view = memoryview(buffer)
        if not view.nbytes:
            return
        view = view.cast("B")
        if start_byte < 0 or start_byte + view.nbytes > placement.tensor.nbytes:
            raise ValueError(
                f"tensor {name!r} has {placement.tensor.nbytes} bytes; cannot write {view.nbytes} at {start_byte}"
            )
        write_from(path, placement.offset + start_byte, view)

    def checksum(self, name: str) -> str:
        """Return the xxh3 checksum of a tensor's bytes as they lie on disk now."""
        path, placement = self._places[name]
        return _checksum(Stored(path, placement.offset, placement.tensor.dtype, placement.tensor.shape))

    def planned(self) -> dict[str, OutputTensor]:
        """Return every tensor of the plan by name."""
        return {name: placement.tensor for name, (_, placement) in self._places.items()}

    def sync(self, name: str | None = None) -> None:
        """Make what was written durable: the file that holds tensor `name`, or all files."""
        paths = [self._places[name][0]] if name is not None else [self.folder / shard.file for shard in self.shards]
        for path in paths:
            try:
                with descriptor(path, write=True) as number:
                    os.fsync(number)
            except OSError as error:
                raise storage_error(path, error) from error

    def finish(self) -> None:
        """Make everything durable and write the indices."""
        self.sync()
        for index, shards in self._indexed().items():
            weight_map = {p.stored_name: Path(shard.file).name for shard in shards for p in shard.tensors}
            total = sum(p.tensor.nbytes for shard in shards for p in shard.tensors)
            content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            write_text_atomic(self.folder / index, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _indexed(self) -> dict[str, list[Shard]]:
        found: dict[str, list[Shard]] = {}
        for shard in self.shards:
            if shard.index is not None:
                found.setdefault(shard.index, []).append(shard)
        return found

    def verify(self, checksums: Mapping[str, str] | None = None) -> None:
        """Re-open what was written and compare it with the plan; with checksums (xxh3 per tensor), re-read the numbers.

        Raises VerificationError naming every file and tensor that differs.
        """
        problems = Problems()
        for shard in self.shards:
            path = self.folder / shard.file
            try:
                header = read_header(path)
            except CheckpointError as error:
                problems.add(str(error))
                continue
            found = {name: (t.offset, t.dtype, t.shape) for name, t in header.tensors.items()}
            for placement in shard.tensors:
                tensor = placement.tensor
                planned = (placement.offset, tensor.dtype, tensor.shape)
                stored = found.pop(placement.stored_name, None)
                if stored != planned:
                    problems.add(f"{path}: tensor {tensor.name!r} is {stored}, planned {planned} (offset, type, shape)")
                elif checksums is not None and tensor.name in checksums:
                    checksum = _checksum(Stored(path, *planned))
                    if checksum != checksums[tensor.name]:
                        problems.add(
                            f"{path}: tensor {tensor.name!r} reads back as {checksum}, written {checksums[tensor.name]}"
                        )
            for name in found:
                problems.add(f"{path}: tensor {name!r} was not planned")
        self._verify_indices(problems)
        for name in sorted(set(checksums or ()) - set(self._places)):
            problems.add(f"tensor {name!r} has a checksum but is in no file")
        problems.raise_if_any(VerificationError, f"{self.folder}: not as written")

    def _verify_indices(self, problems: Problems) -> None:
        for index, shards in self._indexed().items():
            planned = {p.stored_name: Path(shard.file).name for shard in shards for p in shard.tensors}
            try:
                found = json.loads((self.folder / index).read_bytes())["weight_map"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                problems.add(f"{self.folder / index}: cannot be read as an index ({error})")
                continue
            if found != planned:
                problems.add(f"{self.folder / index}: its weight_map differs from the plan")


def _reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes whose blocks exist, so that a full disk is found now and not in the middle."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(number, size)
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(number, 0, size)
    finally:
        os.close(number)


def _checksum(stored: Stored) -> str:
    digest = xxhash.xxh3_64()
    buffer = bytearray(min(_READ_BLOCK, stored.nbytes))
    for start in range(0, stored.nbytes, _READ_BLOCK):
        view = memoryview(buffer)[: min(_READ_BLOCK, stored.nbytes - start)]
        read_into(stored.path, stored.offset + start, view)
        digest.update(view)
    return digest.hexdigest()
