"""What kinds have in common that compress an expert's change tensor by tensor: options, writing, what is kept whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.residuals.protocol import Creation
from consilience.bundles.weights import Given, chunks, is_float, write_resumable
from consilience.checkpoints.dtypes import DTYPES, dtype_from_name, encode, working_dtype
from consilience.checkpoints.header import read_header
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.sources import Source, Stored
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.errors import NonFiniteError, Problems
from consilience.merging.parameters import matches

__all__ = ["WHOLE", "Excluded", "Part", "PerTensor", "opened_parts"]

WHOLE = "whole"
"""The part of a tensor that is kept as the expert has it."""

Excluded = Literal["own", "base"]


class Part(NamedTuple):
    """One stored piece of a tensor's residual."""

    part: str
    dtype: str
    shape: tuple[int, ...]


class PerTensor:
    """A kind that stores, per expert and tensor, parts of the change from the shared weights.

    A subclass says which parts a tensor has (`parts`; none: it stays the shared one) and computes them (`compress`).
    exclude: patterns of tensors that are neither merged nor compressed; with excluded="own" the expert's own values
    are kept whole, with "base" every expert has the base's. dtype: of what is stored, by default each tensor's own.
    """

    kind: ClassVar[str]
    shares_base: ClassVar[bool] = False

    def __init__(self, exclude: Sequence[str] = (), excluded: Excluded = "own", dtype: str | None = None) -> None:
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        self.excluded = excluded
        self.dtype = dtype

    def settings(self) -> dict[str, Any]:
        """Return what decides the residuals."""
        return {"exclude": list(self.exclude), "excluded": self.excluded, "dtype": self.dtype}

    def excludes(self, name: str) -> bool:
        """Whether a tensor is left out of merge and compression."""
        return any(matches(pattern, name) for pattern in self.exclude)

    def check(self, base: Given, experts: Mapping[str, Given], problems: Problems) -> None:
        """Report options that cannot be."""
        if self.excluded not in get_args(Excluded):
            problems.add(f"excluded: {self.excluded!r} is not one of {', '.join(get_args(Excluded))}")
        known = None if self.dtype is None else dtype_from_name(self.dtype)
        if self.dtype is not None and (known is None or DTYPES[known].kind != "float"):
            problems.add(f"dtype: {self.dtype!r} is no floating-point type; use float32, bfloat16 or float16")
        for pattern in self.exclude:
            if not any(matches(pattern, name) for name in base.tensors):
                problems.add(f"exclude: {pattern!r} matches no tensor")

    def parts(self, name: str, expert: str, source: Source, dtype: str) -> list[Part]:
        """Return the parts of a tensor that is compressed; none: it is kept whole."""
        raise NotImplementedError

    def compress(self, name: str, expert: str, change: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the values of the parts, from the change (in the tensor's shape, float32 or float64)."""
        raise NotImplementedError

    def _compressed(self, name: str, expert: str, shared: Source, own: Source) -> list[NDArray[Any]]:
        return self.compress(name, expert, _change(name, expert, shared, own))

    def write(self, creation: Creation) -> dict[str, Any]:
        """Write one file per expert."""
        files = {}
        vanished: set[str] = set()
        for place, (expert, given) in enumerate(creation.experts.items()):
            path = f"experts/{place}.safetensors"
            planned: dict[str, list[Part]] = {}
            for name, source in creation.shared.tensors.items():
                found = self._planned(name, expert, source, given.tensors[name])
                if any(0 in part.shape for part in found) and source.numel:
                    vanished.add(name)
                elif found:
                    planned[name] = found
            outputs = [
                OutputTensor(f"{name}:{part.part}", part.dtype, part.shape)
                for name, found in planned.items()
                for part in found
            ]
            shards = plan_shards(outputs, components=False, file_names=f"{place}.safetensors", max_shard_bytes=1 << 62)
            writer = CheckpointWriter(creation.folder / "experts", shards)
            write_resumable(creation.job, f"{path}/", writer, self._values(creation, expert, given, planned))
            files[expert] = [path] if outputs else []
        if vanished:
            warnings.warn(
                f"{self.kind}: nothing is kept of {len(vanished)} tensor(s), {sorted(vanished)[0]} for one; every "
                "expert has the shared weights there: keep more",
                stacklevel=2,
            )
        return {"files": files}

    def _planned(self, name: str, expert: str, source: Source, own: Source) -> list[Part]:
        if not is_float(source) or (self.excludes(name) and self.excluded == "base") or _equal(source, own):
            return []
        whole = [Part(WHOLE, own.dtype, tuple(own.shape))]
        if self.excludes(name):
            return whole
        dtype = source.dtype if self.dtype is None else str(dtype_from_name(self.dtype))
        return self.parts(name, expert, source, dtype) or whole

    def _values(
        self, creation: Creation, expert: str, given: Given, planned: Mapping[str, list[Part]]
    ) -> Iterator[tuple[str, Iterator[NDArray[Any]]]]:
        """Yield the stored parts of an expert; a tensor is compressed once, when its first part is asked for."""
        for name, parts in planned.items():
            own = given.tensors[name]
            if parts[0].part == WHOLE:
                yield f"{name}:{WHOLE}", (own.read_raw(start, stop) for start, stop in chunks(own.numel))
                continue
            shared = creation.shared.tensors[name]
            make = partial(_once, [], partial(self._compressed, name, expert, shared, own))
            for place, part in enumerate(parts):
                yield f"{name}:{part.part}", _stored(make, place, part)


def _once(made: list[NDArray[Any]], make: Callable[[], list[NDArray[Any]]]) -> list[NDArray[Any]]:
    if not made:
        made.extend(make())
    return made


def _stored(make: Callable[[], list[NDArray[Any]]], place: int, part: Part) -> Iterator[NDArray[Any]]:
    values = np.ascontiguousarray(make()[place]).reshape(-1)
    if DTYPES[part.dtype].kind != "float":
        yield values
        return
    raw = np.empty(values.size, DTYPES[part.dtype].storage)
    encode(values, part.dtype, raw)
    yield raw


def _change(name: str, expert: str, shared: Source, own: Source) -> NDArray[Any]:
    work = working_dtype([shared.dtype, own.dtype])
    change, below = np.empty(own.numel, work), np.empty(own.numel, work)
    own.read(0, own.numel, change)
    shared.read(0, own.numel, below)
    change -= below
    if not np.isfinite(change).all():
        raise NonFiniteError(f"tensor {name!r}: NaN or infinity in expert {expert!r} or in the shared weights")
    return change.reshape(tuple(own.shape))


def _equal(first: Source, second: Source) -> bool:
    if first.dtype != second.dtype:
        return False
    ranges = chunks(first.numel)
    return all(first.read_raw(*part).tobytes() == second.read_raw(*part).tobytes() for part in ranges)


def opened_parts(
    folder: Path,
    record: Mapping[str, Any],
    expert: str,
    shared: Checkpoint,
    make: Callable[[Source, Mapping[str, Stored]], Source],
) -> Checkpoint:
    """Return an expert: its tensors are made of the shared one and the stored parts, whole, or the shared one."""
    found: dict[str, dict[str, Stored]] = {}
    for file in record["files"][expert]:
        for key, stored in read_header(folder / file).tensors.items():
            name, _, part = key.rpartition(":")
            found.setdefault(name, {})[part] = stored
    tensors: dict[str, Source] = dict(shared.tensors)
    for name, parts in found.items():
        tensors[name] = parts[WHOLE] if WHOLE in parts else make(shared.tensors[name], parts)
    return replace(shared, tensors=tensors)
