"""Makes mask bundles: merges the multi-task model and writes the masks, tensor by tensor, in bounded memory."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

from consilience.bundles.masks import FORMAT, VERSION, MaskBundle, Weights, content_hash, open_mask_bundle, open_weights
from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.sources import Source
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.core.atomic import storage_error
from consilience.core.hashing import fingerprint, xxh3_hex
from consilience.core.jobs import MANIFEST, Job
from consilience.core.records import write_record
from consilience.errors import Problems, RecipeError
from consilience.merging.binding import bind_parameters
from consilience.merging.global_scope import model_statistics
from consilience.merging.localisation import Localisation, MultiTask
from consilience.merging.method import find_method
from consilience.merging.steps import Chunk, Statistics
from consilience.merging.task import DEFAULT_CHUNK, TensorTask, merge_tensor, survey_tensor

__all__ = ["create_mask_bundle"]

Coding = Literal["zlib", "packed"]

_METHOD = "tall_mask"


def create_mask_bundle(
    out: str | Path,
    base: Weights,
    experts: Mapping[str, Weights],
    *,
    merge: MultiTask = "task_arithmetic",
    density: float = 0.2,
    tall_mask_lambda: float | Mapping[str, float] = 0.4,
    coding: Coding = "zlib",
) -> MaskBundle:
    """Write the experts of one base as a multi-task model and a mask each, and open the result.

    >>> import tempfile
    >>> base = {"w": np.zeros(64, np.float32)}
    >>> experts = {"a": {"w": np.arange(64, dtype=np.float32)}, "b": {"w": np.ones(64, np.float32)}}
    >>> bundle = create_mask_bundle(Path(tempfile.mkdtemp()) / "bundle", base, experts)
    >>> bundle.tasks, bundle.density("a")
    (('a', 'b'), 0.984375)
    >>> bundle.reconstruct("a", base)["w"][:4].tolist()
    [0.0, 2.0, 3.0, 4.0]

    base, experts: references to models, opened checkpoints, or state dicts. merge, density, tall_mask_lambda: as in the
    method tall_mask. coding: "packed" stores 8 bits to a byte; "zlib" codes those bytes, which pays where masks are
    sparse. An interrupted call resumes when it is repeated.

    Raises RecipeError with all problems of parameters, names, shapes and types; StorageError, NonFiniteError.
    """
    reference, bases, checkpoint = open_weights(base)
    opened = {name: open_weights(expert) for name, expert in experts.items()}
    given = {name: tensors for name, (_, tensors, _) in opened.items()}
    wanted = {"merge": merge, "density": density, "tall_mask_lambda": tall_mask_lambda}
    tasks = _tasks(bases, given, wanted, coding)
    request = {
        "base": _identity(bases, checkpoint),
        "experts": {name: _identity(tensors, found) for name, (_, tensors, found) in opened.items()},
        "parameters": tasks[0].parameters,
        "coding": coding,
    }
    with Job(Path(out), kind=FORMAT, request=request) as job:
        made = _Creation(job, tasks, coding).run()
        tensors = {name: [s.dtype, list(s.shape), made.base.get(name) or content_hash(s)] for name, s in bases.items()}
        record = {
            "kind": FORMAT,
            "base": {"reference": reference, "fingerprint": fingerprint(tensors), "tensors": tensors},
            **_described(tasks, made, coding),
            "sizes": {
                "experts": sum(s.nbytes for found in given.values() for s in found.values()),
                "base": sum(s.nbytes for s in bases.values()),
                "shared": sum(task.nbytes for task in tasks),
                "masks_packed": sum(-(-task.numel // 8) for task in tasks) * len(given),
                "masks": sum(made.mask_bytes),
            },
        }
        write_record(job.work / MANIFEST, FORMAT, VERSION, record)
        job.publish()
    return open_mask_bundle(out)


def _described(tasks: Sequence[TensorTask], made: _Made, coding: str) -> dict[str, Any]:
    """Return what the record says of tasks, masks and the multi-task model."""
    parameters = tasks[0].parameters
    each = zip(tasks[0].expert_names, parameters["tall_mask_lambda"], made.mask_bytes, strict=True)
    return {
        "merge": parameters["merge"],
        "density": parameters["density"] if parameters["merge"] == "ties" else None,
        "coding": coding,
        "tasks": [
            {"name": name, "tall_mask_lambda": threshold, "file": f"masks/{place}.bin", "bytes": size}
            for place, (name, threshold, size) in enumerate(each)
        ],
        "files": made.files,
        "shared": made.shared,
        "masks": made.masks,
    }


def _identity(tensors: Mapping[str, Source], checkpoint: Checkpoint | None) -> str:
    """Return what tells one model from another: of files without reading them whole."""
    if checkpoint is not None:
        return checkpoint.fingerprint
    return fingerprint({name: [s.dtype, s.shape, content_hash(s)] for name, s in tensors.items()})


def _tasks(
    bases: Mapping[str, Source], experts: Mapping[str, Mapping[str, Source]], wanted: Mapping[str, Any], coding: str
) -> list[TensorTask]:
    """Return one task per floating-point tensor; raises with everything that does not fit."""
    problems = Problems()
    order = tuple(sorted(experts))
    if len(order) < 2:
        problems.add(f"experts: a mask bundle stands for at least 2, found {len(order)}")
    bound = bind_parameters(find_method(_METHOD), wanted, order, tuple(experts), problems)
    for name in order:
        for tensor in sorted({*bases, *experts[name]}):
            first, second = bases.get(tensor), experts[name].get(tensor)
            if first is None or second is None:
                problems.add(f"tensor {tensor!r}: not in {'the base' if first is None else f'expert {name!r}'}")
            elif tuple(first.shape) != tuple(second.shape):
                problems.add(
                    f"tensor {tensor!r}: shape {list(second.shape)} in {name!r}, {list(first.shape)} in the base"
                )
    for tensor, source in bases.items():
        if source.dtype not in DTYPES:
            problems.add(f"tensor {tensor!r}: safetensors has no such number type")
    floats = {name: s for name, s in bases.items() if s.dtype in DTYPES and DTYPES[s.dtype].kind == "float"}
    if coding not in get_args(Coding):
        problems.add(f"coding: {coding!r} is not one of {', '.join(get_args(Coding))}")
    if not floats:
        problems.add("base: it has no floating-point tensor")
    problems.raise_if_any(RecipeError, "mask bundle")
    return [
        TensorTask(
            name,
            tuple(source.shape),
            source.dtype,
            _METHOD,
            bound,
            tuple(experts[expert][name] for expert in order),
            order,
            source,
        )
        for name, source in floats.items()
    ]


@dataclass
class _Made:
    """Checksums of the base's and the multi-task model's tensors; per tensor and task bytes, checksum and bits set."""

    base: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    masks: dict[str, list[list[Any]]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    @property
    def mask_bytes(self) -> list[int]:
        """The size of each task's file."""
        return [sum(size for size, _, _ in task) for task in zip(*self.masks.values(), strict=True)]

    def keep(self, name: str, entry: Mapping[str, Any]) -> None:
        """Take over what the journal says of a tensor."""
        self.base[name], self.shared[name], self.masks[name] = entry["base"], entry["shared"], entry["masks"]


class _Creation:
    """One run: shared weights through the writer, masks appended to a file per task, a journal line per tensor."""

    def __init__(self, job: Job, tasks: Sequence[TensorTask], coding: str) -> None:
        self.job = job
        self.tasks = tasks
        self.coding = coding
        values = tasks[0].parameters
        self.localisation = Localisation(values["merge"], values["density"], values["tall_mask_lambda"])
        outputs = [OutputTensor(task.name, task.dtype, task.shape) for task in tasks]
        self.writer = CheckpointWriter(job.work / "shared", plan_shards(outputs))
        self.made = _Made(files=[shard.file for shard in self.writer.shards])

    def run(self) -> _Made:
        """Make what the journal does not hold and verify everything."""
        self.writer.create()
        folder = self.job.work / "masks"
        folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            files = [
                stack.enter_context((folder / f"{place}.bin").open("a+b"))
                for place in range(len(self.tasks[0].expert_names))
            ]
            pending = self._resume(files)
            known = model_statistics(self.tasks, check=self.job.check) if pending else {}
            for task in pending:
                self._tensor(task, known.get(task.name), files)
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        self.writer.finish()
        self.writer.verify(self.made.shared)
        return self.made

    def _resume(self, files: Sequence[BinaryIO]) -> Sequence[TensorTask]:
        """Keep the leading tensors whose bytes have the journal's checksums, cut what follows, return the others."""
        ends = [0] * len(files)
        kept = 0
        for task in self.tasks:
            entry = self.job.done.get(task.name)
            if entry is None or self.writer.checksum(task.name) != entry["shared"]:
                break
            if any(_digest(f, end, m[0]) != m[1] for f, end, m in zip(files, ends, entry["masks"], strict=True)):
                break
            ends = [end + size for end, (size, _, _) in zip(ends, entry["masks"], strict=True)]
            self.made.keep(task.name, entry)
            kept += 1
        for file, end in zip(files, ends, strict=True):
            file.truncate(end)
        return self.tasks[kept:]

    def _tensor(self, task: TensorTask, known: Statistics | None, files: Sequence[BinaryIO]) -> None:
        itemsize = DTYPES[task.dtype].itemsize

        def write(start: int, raw: NDArray[Any]) -> None:
            self.writer.write(task.name, start * itemsize, raw)

        checksum, inputs = merge_tensor(task, write, statistics=known, check=self.job.check)
        bits = _Bits(self.localisation, [_Coder(file, self.coding) for file in files])
        steps = replace(task.steps(), surveys=(bits,))
        masks = survey_tensor(task, steps, 0, known or {}, DEFAULT_CHUNK, self.job.check)
        assert task.base is not None
        entry = {"shared": checksum, "base": inputs[-1] or content_hash(task.base), "masks": masks}
        self.job.record(task.name, durable=False, **entry)
        self.made.keep(task.name, entry)


def _digest(file: BinaryIO, start: int, size: int) -> str:
    file.seek(start)
    return xxh3_hex(file.read(size))


class _Bits:
    """A pass over one tensor that writes the masks of all tasks."""

    def __init__(self, localisation: Localisation, coders: Sequence[_Coder]) -> None:
        self.localisation = localisation
        self.coders = coders

    def start(self) -> None:
        return None

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        total = self.localisation.vector(chunk, known)
        for expert, coder in enumerate(self.coders):
            coder.add(self.localisation.mask(chunk, total, expert))  # chunks begin at multiples of 8

    def close(self, state: Any) -> list[list[Any]]:
        return [coder.close() for coder in self.coders]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        return None


class _Coder:
    """Packs bits, codes the bytes and appends them to a file, counting what it wrote."""

    def __init__(self, file: BinaryIO, coding: str) -> None:
        self.file = file
        # runs of equal bytes and their frequencies are all that a mask offers; a search for repeats finds none
        self.code = zlib.compressobj(strategy=zlib.Z_RLE) if coding == "zlib" else None
        self.digest = xxhash.xxh3_64()
        self.bytes = self.ones = 0

    def add(self, mask: NDArray[np.bool_]) -> None:
        self.ones += int(np.count_nonzero(mask))
        packed = np.packbits(mask).tobytes()
        self._write(self.code.compress(packed) if self.code is not None else packed)

    def close(self) -> list[Any]:
        """Return bytes, checksum and number of bits set."""
        self._write(self.code.flush() if self.code is not None else b"")
        return [self.bytes, self.digest.hexdigest(), self.ones]

    def _write(self, data: bytes) -> None:
        try:
            self.file.write(data)
        except OSError as error:
            raise storage_error(Path(self.file.name), error) from error
        self.digest.update(data)
        self.bytes += len(data)
