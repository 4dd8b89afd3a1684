"""Widths: experts that are sub-networks of one slimmable network; of each only its sizes are kept.

A slimmable layer of some width uses the first channels of the full one, so a sub-network's tensors are leading slices
of the full network's, and their shapes say all. What is no such slice (a norm or a decoder of the expert's own) is kept
whole. The expert comes back as the dense checkpoint it was, bit for bit, with its own config.json.

Sources: Yu et al. 2018, Slimmable Neural Networks, arXiv 1812.08928; Aich et al. 2023, Efficient Controllable
Multi-Task Architectures, arXiv 2308.11744.
"""

from __future__ import annotations

import filecmp
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from consilience.bundles.format import SHARED
from consilience.bundles.residuals.protocol import Computed, Creation
from consilience.bundles.weights import Given, chunks, write_resumable
from consilience.checkpoints.dtypes import DTYPES, decode
from consilience.checkpoints.header import read_header
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.side_files import copy_side_files
from consilience.checkpoints.sources import Source
from consilience.checkpoints.tied import tied_names
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.core.atomic import storage_error
from consilience.core.hashing import file_xxh3
from consilience.core.records import read_record, write_record
from consilience.errors import CheckpointError, Problems, VerificationError

__all__ = ["KIND", "LeadingSlices", "Sliced", "is_slice"]

_RECORD, _OWN, _SIDE = "widths.json", "own.safetensors", "side"
_VERSION = 1
_BLOCK = 1 << 18


class LeadingSlices:
    """The shape of every tensor that is a leading slice of the shared one; other tensors whole.

    exact: refuse experts with a tensor that is no slice, rather than keep it. An expert that is a model folder gets its
    own side files back; one given as a state dict those of the base.
    """

    kind: ClassVar[str] = "widths"
    shares_base: ClassVar[bool] = True

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact

    def settings(self) -> dict[str, Any]:
        """Return whether every tensor has to be a slice."""
        return {"exact": self.exact}

    def check(self, base: Given, experts: Mapping[str, Given], problems: Problems) -> None:
        """Report experts that are no part of the base; with `exact` every tensor is compared."""
        if not isinstance(self.exact, bool):
            problems.add(f"exact: {self.exact!r} is neither true nor false")
        for expert, given in experts.items():
            for name, own in given.tensors.items():
                if own.dtype not in DTYPES:
                    problems.add(f"experts.{expert}: tensor {name!r}: safetensors has no such number type")
                elif self.exact is True and (reason := _no_slice(base.tensors.get(name), own)):
                    problems.add(f"experts.{expert}: tensor {name!r} is no slice of the base's: {reason}")
            if not any(_fits(base.tensors.get(name), own) for name, own in given.tensors.items()):
                problems.add(f"experts.{expert}: no tensor has a name and a shape that fit into the base's")

    def write(self, creation: Creation) -> dict[str, Any]:
        """Write one folder per expert: its shapes, the tensors and side files that are its own."""
        files: dict[str, list[str]] = {}
        checksums, own, absent = {}, {}, {}
        for place, (expert, given) in enumerate(creation.experts.items()):
            folder = creation.folder / f"experts/{place}"
            own[expert] = self._compared(creation, place, expert, given)
            absent[expert] = [name for name in creation.shared.tensors if name not in given.tensors]
            self._write_own(creation, folder, given, own[expert])
            folder.mkdir(parents=True, exist_ok=True)
            side = _write_side(folder / _SIDE, creation.folder / SHARED, given.checkpoint)
            shapes = {n: None if n in own[expert] else list(source.shape) for n, source in given.tensors.items()}
            config = dict(given.checkpoint.config) if side is not None and given.checkpoint is not None else None
            record = {"shapes": shapes, "absent": absent[expert], "side_files": side, "config": config}
            write_record(folder / _RECORD, "widths", _VERSION, record)
            checksums[expert] = file_xxh3(folder / _RECORD)
            files[expert] = _listed(creation.folder, folder)
        return {"files": files, "widths": checksums, "own": own, "absent": absent}

    def _compared(self, creation: Creation, place: int, expert: str, given: Given) -> list[str]:
        """Return the names of the tensors that are no slice."""
        job, found = creation.job, []
        for name, source in given.tensors.items():
            key = f"slices/{place}/{name}"
            if key not in job.done:
                job.check()
                shared = creation.shared.tensors.get(name)
                job.record(key, durable=False, slice=shared is not None and is_slice(shared, source))
            if not job.done[key]["slice"]:
                found.append(name)
        if len(found) == len(given.tensors):
            warnings.warn(
                f"widths: no tensor of expert {expert!r} is a slice of the base's, so all of it is kept whole; was it "
                "trained on after it was cut out?",
                stacklevel=2,
            )
        return found

    def _write_own(self, creation: Creation, folder: Path, given: Given, names: Sequence[str]) -> None:
        outputs = [OutputTensor(name, given.tensors[name].dtype, tuple(given.tensors[name].shape)) for name in names]
        shards = plan_shards(outputs, components=False, file_names=_OWN, max_shard_bytes=1 << 62)
        writer = CheckpointWriter(folder, shards)
        sources = ((name, given.tensors[name]) for name in names)
        pieces = ((name, (own.read_raw(*part) for part in chunks(own.numel))) for name, own in sources)
        write_resumable(creation.job, f"{folder.name}/{_OWN}/", writer, pieces)

    @staticmethod
    def open(folder: Path, record: Mapping[str, Any], expert: str, shared: Checkpoint) -> Checkpoint:
        """Return the expert: slices of the shared tensors, and those of its own.

        Raises VerificationError where its shapes are not as they were written.
        """
        place = (folder / next(path for path in record["files"][expert] if path.endswith(f"/{_RECORD}"))).parent
        if file_xxh3(place / _RECORD) != record["widths"][expert]:
            raise VerificationError(f"{place / _RECORD}: it is not as it was written; make the bundle again")
        kept = read_record(place / _RECORD, "widths", _VERSION)
        own = read_header(place / _OWN).tensors if None in kept["shapes"].values() else {}
        tensors: dict[str, Source] = {}
        problems = Problems()
        for name, shape in kept["shapes"].items():
            if shape is None and name in own:
                tensors[name] = own[name]
            elif shape is not None and name in shared.tensors and _within(shared.tensors[name].shape, shape):
                tensors[name] = _sliced(shared.tensors[name], shape)
            else:
                found = "not there" if shape is None else f"no slice {shape} of the shared one"
                problems.add(f"tensor {name!r}: {found}")
        problems.raise_if_any(CheckpointError, str(place))
        made = replace(shared, tensors=tensors, components=_components(tensors))
        if kept["side_files"] is not None:
            side = place / _SIDE
            made = replace(made, folder=side, side_files=tuple(kept["side_files"]), config=kept["config"])
        return replace(made, tied=tied_names(tensors, made.config) if "" in made.components else {})


KIND = LeadingSlices


@dataclass(frozen=True, eq=False)
class Sliced(Computed):
    """The leading part of a tensor, of a shape that is nowhere larger.

    >>> from consilience.merging.memory import as_source
    >>> Sliced(as_source(np.arange(12).reshape(3, 4)), (2, 3)).read_raw(1, 5).tolist()
    [1, 2, 4, 5]

    Rows are read in blocks with what lies between them.
    """

    size: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""
        return self.size

    def read_raw(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) as stored."""
        whole = tuple(self.base.shape)
        cut = [axis for axis, (own, full) in enumerate(zip(self.size, whole, strict=True)) if own < full]
        if not cut or cut[-1] == 0:  # a prefix of the numbers
            return self.base.read_raw(start, stop)
        # rows along the axis before the last one that is cut lie at equal distances in the whole tensor
        last = cut[-1]
        rows, run, apart = self.size[last - 1], math.prod(self.size[last:]), math.prod(whole[last:])
        out: NDArray[Any] = np.empty(stop - start, DTYPES[self.dtype].storage)
        at = start
        while at < stop:
            row, skipped = divmod(at, run)
            outer, inner = divmod(row, rows)
            wanted = -(-(skipped + stop - at) // run)
            count = min(rows - inner, max(1, _BLOCK // apart), wanted)
            first = (self._before(outer, last - 1) + inner) * apart
            if count == 1:
                part = self.base.read_raw(first + skipped, first + min(run, skipped + stop - at))
            else:
                held = np.ascontiguousarray(self.base.read_raw(first, first + (count - 1) * apart + run))
                block = as_strided(held, (count, run), (apart * held.itemsize, held.itemsize), writeable=False)
                part = block.reshape(-1)[skipped : skipped + stop - at]
            out[at - start : at - start + part.size] = part
            at += part.size
        return out

    def _before(self, outer: int, axis: int) -> int:
        """Return how many rows of the whole tensor along `axis` lie before the outer part of a number."""
        found, factor = 0, int(self.base.shape[axis])
        for place in range(axis - 1, -1, -1):
            outer, index = divmod(outer, self.size[place])
            found += index * factor
            factor *= self.base.shape[place]
        return found

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode elements [start, stop) into `out`."""
        for first, last in chunks(stop - start):
            decode(self.read_raw(start + first, start + last), self.dtype, out[first:last])


def is_slice(whole: Source, part: Source) -> bool:
    """Whether a tensor has the type of another and, bit for bit, its leading numbers along every axis.

    >>> from consilience.merging.memory import as_source
    >>> whole = np.arange(12.0).reshape(3, 4)
    >>> is_slice(as_source(whole), as_source(whole[:2, :3])), is_slice(as_source(whole), as_source(whole[1:]))
    (True, False)
    """
    return not _no_slice(whole, part)


def _no_slice(whole: Source | None, part: Source) -> str:
    """Return why a tensor is no leading slice of another, or nothing."""
    if whole is None:
        return "there is none of that name"
    if whole.dtype != part.dtype:
        return f"type {part.dtype}, there {whole.dtype}"
    if not _within(whole.shape, part.shape):
        return f"shape {list(part.shape)}, there {list(whole.shape)}"
    own = _sliced(whole, part.shape)
    if any(own.read_raw(*cut).tobytes() != part.read_raw(*cut).tobytes() for cut in chunks(part.numel)):
        return "other numbers"
    return ""


def _fits(whole: Source | None, part: Source) -> bool:
    return whole is not None and _within(whole.shape, part.shape)


def _within(whole: Sequence[int], part: Sequence[int]) -> bool:
    return len(whole) == len(part) and all(own <= full for own, full in zip(part, whole, strict=True))


def _sliced(whole: Source, shape: Sequence[int]) -> Source:
    return whole if tuple(whole.shape) == tuple(shape) else Sliced(whole, tuple(shape))


def _components(names: Mapping[str, Source]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.rpartition("/")[0] for name in names))


def _write_side(target: Path, shared: Path, expert: Checkpoint | None) -> list[str] | None:
    """Copy an expert's side files and return their names; None where it has none but the shared model's."""
    shutil.rmtree(target, ignore_errors=True)
    if expert is None or not expert.side_files:
        return None
    try:
        target.mkdir(parents=True)
        copied = copy_side_files(expert, target)
        if all(_same(target / name, shared / name) for name in copied):
            shutil.rmtree(target)
            return None
    except OSError as error:
        raise storage_error(target, error) from error
    return copied


def _same(first: Path, second: Path) -> bool:
    return second.is_file() and filecmp.cmp(first, second, shallow=False)


def _listed(root: Path, folder: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in folder.rglob("*") if path.is_file())
