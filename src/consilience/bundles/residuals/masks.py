"""Masks: one multi-task model, and a bit per weight and expert that finds the expert in it again (TALL-masks).

The expert takes a weight from the multi-task model where its mask has it, and from the base, which is the shared model,
elsewhere. What is stored is base + multi-task vector, rounded as a merge would be, rather than the vector: then nothing
is computed when an expert is read, and its weights are those of the method tall_mask bit for bit, in any number type.

Source: Wang et al. 2024, Localizing Task Information for Improved Model Merging and Compression, arXiv 2405.07813.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.residuals.mask_files import Coding, MaskCoder, MaskFile
from consilience.bundles.residuals.mask_writing import MaskWriting, float_tasks
from consilience.bundles.residuals.protocol import Computed, Creation
from consilience.bundles.weights import Given
from consilience.checkpoints.dtypes import DTYPES, decode
from consilience.checkpoints.header import read_header
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.sources import Source, Stored
from consilience.errors import Problems, RecipeError
from consilience.merging.binding import bind_parameters
from consilience.merging.localisation import Localisation, MultiTask
from consilience.merging.method import find_method
from consilience.merging.steps import Chunk, Statistics
from consilience.merging.task import DEFAULT_CHUNK, TensorTask, survey_tensor

__all__ = ["KIND", "MULTI_TASK", "Masked", "TallMasks", "check_coding", "opened_masks"]

MULTI_TASK = "multi_task"
"""The folder of the multi-task model, floating-point tensors only."""


class TallMasks:
    """Masks of TALL-masks.

    merge, density, tall_mask_lambda: as in the method tall_mask. coding: "packed" stores 8 bits to a byte; "zlib" codes
    those bytes, which pays where masks are sparse.
    """

    kind: ClassVar[str] = "masks"
    shares_base: ClassVar[bool] = True

    def __init__(
        self,
        merge: MultiTask = "task_arithmetic",
        density: float = 0.2,
        tall_mask_lambda: float | Mapping[str, float] = 0.4,
        coding: Coding = "zlib",
    ) -> None:
        self.parameters = {"merge": merge, "density": density, "tall_mask_lambda": tall_mask_lambda}
        self.coding = coding

    def settings(self) -> dict[str, Any]:
        """Return the parameters of the merge, and the coding."""
        return {**self.parameters, "coding": self.coding}

    def check(self, base: Given, experts: Mapping[str, Given], problems: Problems) -> None:
        """Report parameters that tall_mask does not take."""
        check_coding(self.coding, experts, problems)
        bind_parameters(find_method("tall_mask"), self.parameters, tuple(experts), tuple(experts), problems)

    def write(self, creation: Creation) -> dict[str, Any]:
        """Write the multi-task model and the masks."""
        problems = Problems()
        order = tuple(creation.experts)
        bound = bind_parameters(find_method("tall_mask"), self.parameters, order, order, problems)
        problems.raise_if_any(RecipeError, "bundle")
        localisation = Localisation(bound["merge"], bound["density"], bound["tall_mask_lambda"])

        def masks(task: TensorTask, known: Statistics, coders: Sequence[MaskCoder]) -> list[list[Any]]:
            steps = replace(task.steps(), surveys=(_Bits(localisation, coders),))
            found: list[list[Any]] = survey_tensor(task, steps, 0, known, DEFAULT_CHUNK, creation.job.check)
            return found

        tasks = float_tasks(creation, "tall_mask", bound)
        facts = MaskWriting(creation, tasks, self.coding, masks).run()
        thresholds = dict(zip(order, bound["tall_mask_lambda"], strict=True))
        return {**facts, "tall_mask_lambda": thresholds}

    @staticmethod
    def open(folder: Path, record: Mapping[str, Any], expert: str, shared: Checkpoint) -> Checkpoint:
        """Return the expert: the weights of the multi-task model under the mask, of the base elsewhere."""
        return opened_masks(folder, record, expert, shared, Masked)


KIND = TallMasks


class _Bits:
    """A pass over one tensor that writes the masks of all experts."""

    def __init__(self, localisation: Localisation, coders: Sequence[MaskCoder]) -> None:
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


@dataclass(frozen=True, eq=False)
class Masked(Computed):
    """A tensor that is `other` where the mask has a bit, `base` elsewhere."""

    other: Stored
    name: str
    masks: MaskFile

    @cached_property
    def packed(self) -> NDArray[np.uint8]:
        """The bits, 8 to a byte; kept, as a tensor is read in many pieces."""
        return self.masks.packed(self.name)

    def bits(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return the mask of elements [start, stop)."""
        first = start // 8
        bits = np.unpackbits(self.packed[first : -(-stop // 8)], count=stop - 8 * first)
        return bits[start - 8 * first :].view(np.bool_)

    def read_raw(self, start: int, stop: int) -> NDArray[Any]:
        """Return elements [start, stop) as stored."""
        return np.where(self.bits(start, stop), self.other.read_raw(start, stop), self.base.read_raw(start, stop))

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode elements [start, stop) into `out`."""
        raw = np.ascontiguousarray(self.read_raw(start, stop), DTYPES[self.dtype].storage)
        decode(raw, self.dtype, out)

    def inputs(self) -> tuple[Stored, ...]:
        """Return the ranges of files behind both."""
        return (*self.base.inputs(), self.other)


def check_coding(coding: str, experts: Mapping[str, Given], problems: Problems) -> None:
    """Report an unknown coding, and a single expert, for which a mask says nothing."""
    if len(experts) < 2:
        problems.add(f"experts: masks tell at least 2 apart, found {len(experts)}")
    if coding not in get_args(Coding):
        problems.add(f"coding: {coding!r} is not one of {', '.join(get_args(Coding))}")


def opened_masks(
    folder: Path,
    record: Mapping[str, Any],
    expert: str,
    shared: Checkpoint,
    make: Callable[[Source, Stored, str, MaskFile], Source],
) -> Checkpoint:
    """Return the expert, made of base, multi-task model and mask; others are the base's."""
    entries = {name: found[expert] for name, found in record["masks"].items()}
    masks = MaskFile(folder / record["files"][expert][0], entries, record["coding"])
    others = {}
    for file in record["multi_task"]:
        component = file.removeprefix(f"{MULTI_TASK}/").rpartition("/")[0]
        for name, stored in read_header(folder / file).tensors.items():
            others[f"{component}/{name}" if component else name] = stored
    tensors = {
        name: make(source, others[name], name, masks) if name in others else source
        for name, source in shared.tensors.items()
    }
    return replace(shared, tensors=tensors)
