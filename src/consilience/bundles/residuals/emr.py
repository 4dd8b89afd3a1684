"""EMR: one elected model for all experts, a bit per weight and expert, and one number per expert that rescales.

    expert t = base + rescaler_t * mask_t * (elected - base)

The elected model holds, per weight, the expert's value that is furthest from the base on the elected side; it is stored
as it is, so the unified vector is exact and an expert's weights are those of the method emr bit for bit.

Source: Huang et al. 2024, EMR-Merging: Tuning-Free High-Performance Model Merging, arXiv 2405.17461.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.residuals.mask_files import Coding, MaskCoder, MaskFile
from consilience.bundles.residuals.mask_writing import MaskWriting, float_tasks
from consilience.bundles.residuals.masks import Masked, check_coding, opened_masks
from consilience.bundles.residuals.protocol import Creation
from consilience.bundles.weights import Given
from consilience.checkpoints.dtypes import DTYPES, decode, encode, working_dtype
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.sources import Source, Stored
from consilience.errors import Problems, WorkError
from consilience.merging.global_scope import model_statistics
from consilience.merging.kernels import kernels
from consilience.merging.steps import Chunk, Statistics
from consilience.merging.task import DEFAULT_CHUNK, TensorTask, survey_tensor

__all__ = ["KIND", "ElectedMasks", "Rescaled"]


class ElectedMasks:
    """Masks and rescalers of EMR. coding: as for `masks`."""

    kind: ClassVar[str] = "emr"
    shares_base: ClassVar[bool] = True

    def __init__(self, coding: Coding = "zlib") -> None:
        self.coding = coding

    def settings(self) -> dict[str, Any]:
        """Return the coding."""
        return {"coding": self.coding}

    def check(self, base: Given, experts: Mapping[str, Given], problems: Problems) -> None:
        """Report a coding that is not there."""
        check_coding(self.coding, experts, problems)

    def write(self, creation: Creation) -> dict[str, Any]:
        """Write the elected model, the masks and the rescalers."""
        rescalers = {}
        for place, name in enumerate(creation.experts):
            key = f"rescaler/{name}"
            if key not in creation.job.done:
                tasks = float_tasks(creation, "emr", {"task": place})
                facts = model_statistics(tasks, check=creation.job.check)
                creation.job.record(key, rescaler=facts[tasks[0].name]["rescaler"])
            rescalers[name] = float(creation.job.done[key]["rescaler"])

        def masks(task: TensorTask, known: Statistics, coders: Sequence[MaskCoder]) -> list[list[Any]]:
            steps = replace(task.steps(), surveys=(_Signs(coders),))
            found: list[list[Any]] = survey_tensor(task, steps, 0, known, DEFAULT_CHUNK, creation.job.check)
            return found

        tasks = float_tasks(creation, "emr", {"task": -1})
        return {**MaskWriting(creation, tasks, self.coding, masks).run(), "rescalers": rescalers}

    @staticmethod
    def open(folder: Path, record: Mapping[str, Any], expert: str, shared: Checkpoint) -> Checkpoint:
        """Return the expert."""
        rescaler = float(record["rescalers"][expert])

        def make(base: Source, other: Stored, name: str, masks: MaskFile) -> Source:
            return Rescaled(base, other, name, masks, rescaler)

        return opened_masks(folder, record, expert, shared, make)


KIND = ElectedMasks


class _Signs:
    """A pass over one tensor: where each expert changes a weight the way the vote went."""

    def __init__(self, coders: Sequence[MaskCoder]) -> None:
        self.coders = coders

    def start(self) -> None:
        return None

    def add(self, chunk: Chunk, state: Any, known: Statistics) -> None:
        deltas = chunk.deltas
        kernels().consensus(deltas, chunk.numbers([1.0] * len(deltas)), 2, -1, chunk.out)
        for own, coder in zip(deltas, self.coders, strict=True):
            coder.add(((own > 0) & (chunk.out > 0)) | ((own < 0) & (chunk.out < 0)))

    def close(self, state: Any) -> list[list[Any]]:
        return [coder.close() for coder in self.coders]

    def finish(self, states: Sequence[Any], sizes: Sequence[int], known: Sequence[Statistics]) -> None:
        return None


@dataclass(frozen=True, eq=False)
class Rescaled(Masked):
    """A tensor that is base + rescaler * (other - base) where the mask has a bit, the base elsewhere."""

    rescaler: float = 1.0

    def read_raw(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) as stored, computed one width wider and rounded once."""
        work = working_dtype([self.dtype])
        base, change = np.empty(stop - start, work), np.empty(stop - start, work)
        decode(self.base.read_raw(start, stop), self.dtype, base)
        decode(self.other.read_raw(start, stop), self.dtype, change)
        change -= base
        kernels().apply_keep(change, np.ascontiguousarray(self.bits(start, stop)), self.rescaler)
        kernels().add_base(change, base, 1.0)
        raw: NDArray[Any] = np.empty(stop - start, DTYPES[self.dtype].storage)
        encode(change, self.dtype, raw)
        if not np.isfinite(change).all():
            raise WorkError(f"tensor {self.name!r}: NaN or infinity in elements {start} to {stop} of the bundle")
        return raw
