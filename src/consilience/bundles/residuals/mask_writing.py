"""Writing mask residuals: the multi-task model through the writer, masks appended to a file per expert; resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

from numpy.typing import NDArray

from consilience.bundles.residuals.mask_files import MaskCoder, entry_holds
from consilience.bundles.residuals.protocol import Creation
from consilience.bundles.weights import is_float
from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.merging.global_scope import model_statistics
from consilience.merging.steps import Statistics
from consilience.merging.task import TensorTask, merge_tensor

__all__ = ["MaskWriting", "float_tasks"]

Masks = Callable[[TensorTask, Statistics, Sequence[MaskCoder]], list[list[Any]]]
"""Writes the masks of one tensor and returns per expert bytes, checksum and bits set."""


def float_tasks(creation: Creation, method: str, parameters: Mapping[str, Any]) -> list[TensorTask]:
    """Return how the multi-task model's tensors are made: the floating-point ones, merged by a method."""
    return [
        TensorTask(
            name,
            tuple(source.shape),
            source.dtype,
            method,
            parameters,
            tuple(expert.tensors[name] for expert in creation.experts.values()),
            tuple(creation.experts),
            source,
        )
        for name, source in creation.shared.tensors.items()
        if is_float(source)
    ]


class MaskWriting:
    """One run: a journal line per tensor, whose multi-task weights and masks are then on disk."""

    def __init__(self, creation: Creation, tasks: Sequence[TensorTask], coding: str, masks: Masks) -> None:
        self.job, self.folder = creation.job, creation.folder
        self.experts = tuple(creation.experts)
        self.tasks, self.coding, self.masks = tasks, coding, masks
        outputs = [OutputTensor(task.name, task.dtype, task.shape) for task in tasks]
        self.writer = CheckpointWriter(self.folder / "multi_task", plan_shards(outputs))
        self.checksums: dict[str, str] = {}
        self.entries: dict[str, dict[str, list[Any]]] = {}

    def run(self) -> dict[str, Any]:
        """Make what the journal does not hold, verify, and return what the record says."""
        self.writer.create()
        (self.folder / "experts").mkdir(exist_ok=True)
        paths = [self.folder / f"experts/{place}.masks" for place in range(len(self.experts))]
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("a+b")) for path in paths]
            pending = self._resume(files)
            known = model_statistics(self.tasks, check=self.job.check) if pending else {}
            for task in pending:
                self._tensor(task, known.get(task.name), files)
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        self.writer.finish()
        self.writer.verify(self.checksums)
        return {
            "coding": self.coding,
            "multi_task": [f"multi_task/{shard.file}" for shard in self.writer.shards],
            "files": {
                name: [path.relative_to(self.folder).as_posix()] for name, path in zip(self.experts, paths, strict=True)
            },
            "masks": self.entries,
            "packed_bytes": sum(-(-task.numel // 8) for task in self.tasks),
        }

    def _resume(self, files: Sequence[BinaryIO]) -> Sequence[TensorTask]:
        """Keep the leading tensors whose bytes have the journal's checksums, cut what follows, return the others."""
        ends = [0] * len(files)
        kept = 0
        for task in self.tasks:
            entry = self.job.done.get(f"masks/{task.name}")
            if entry is None or self.writer.checksum(task.name) != entry["shared"]:
                break
            if not all(entry_holds(f, end, m) for f, end, m in zip(files, ends, entry["masks"], strict=True)):
                break
            ends = [end + found[0] for end, found in zip(ends, entry["masks"], strict=True)]
            self._keep(task.name, entry)
            kept += 1
        for file, end in zip(files, ends, strict=True):
            file.truncate(end)
        return self.tasks[kept:]

    def _tensor(self, task: TensorTask, known: Statistics | None, files: Sequence[BinaryIO]) -> None:
        itemsize = DTYPES[task.dtype].itemsize

        def write(start: int, raw: NDArray[Any]) -> None:
            self.writer.write(task.name, start * itemsize, raw)

        checksum, _ = merge_tensor(task, write, statistics=known, check=self.job.check)
        masks = self.masks(task, known or {}, [MaskCoder(file, self.coding) for file in files])
        entry = {"shared": checksum, "masks": masks}
        self.job.record(f"masks/{task.name}", durable=False, **entry)
        self._keep(task.name, entry)

    def _keep(self, name: str, entry: Mapping[str, Any]) -> None:
        self.checksums[name] = entry["shared"]
        self.entries[name] = dict(zip(self.experts, entry["masks"], strict=True))
