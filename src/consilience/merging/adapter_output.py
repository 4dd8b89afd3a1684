"""Merges written as a LoRA adapter: the merged task vector of each matrix, re-factored to a chosen rank.

The factors are the truncated singular value decomposition, split evenly; the share of the task vector that the rank
cannot hold is measured and reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import DTYPES, encode
from consilience.checkpoints.sources import LowRank
from consilience.checkpoints.writer import OutputTensor
from consilience.errors import RecipeError
from consilience.merging.peft_config import PREFIX, peft_config
from consilience.merging.request import AdapterOutput
from consilience.merging.steps import Statistics
from consilience.merging.task import TensorTask, merge_tensor

__all__ = ["Factored", "adapter_config", "adapter_tensors", "factor_tensor", "factored_names"]


@dataclass(frozen=True)
class Factored:
    """The two factors of one tensor as stored numbers, and how much of the task vector they miss."""

    a: NDArray[Any]
    b: NDArray[Any]
    norm: float
    error: float


def _adapted(task: TensorTask) -> bool:
    return task.copy is None and any(isinstance(source, LowRank) for source in task.experts)


def _rank(output: AdapterOutput, task: TensorTask) -> int:
    """Return the rank of a matrix's factors: what was asked for, or the sum of the inputs', at most the matrix's."""
    wanted = output.rank or sum(source.a.shape[0] for source in task.experts if isinstance(source, LowRank))
    return min(wanted, *task.shape)


def factored_names(task: TensorTask) -> tuple[str, str]:
    """Return the names of the factors of a tensor in PEFT's layout."""
    module = task.name.removesuffix(".weight")
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def adapter_tensors(output: AdapterOutput, tasks: Sequence[TensorTask]) -> list[OutputTensor]:
    """Return the tensors of the adapter file: two factors for every matrix that an input adapter touches.

    Raises RecipeError when no input is an adapter of the base, or when one touches something else than a matrix.
    """
    chosen = [task for task in tasks if _adapted(task)]
    if not chosen:
        raise RecipeError(
            "output.adapter: no expert is an adapter of the base (`base+adapter`); write the merged model instead"
        )
    if chosen[0].base is None:
        raise RecipeError(
            f"output.adapter: method {chosen[0].method!r} does not change a base, and a change is what an adapter "
            "holds; name a base and use a method on task vectors (task_arithmetic with normalize: true averages)"
        )
    odd = [task.name for task in chosen if len(task.shape) != 2]
    if odd:
        raise RecipeError(f"output.adapter: only matrices can be re-factored, found {', '.join(odd[:5])}")
    tensors = []
    for task in chosen:
        rank = _rank(output, task)
        a, b = factored_names(task)
        dtype = next(s for s in task.experts if isinstance(s, LowRank)).a.dtype
        tensors.append(OutputTensor(a, dtype, (rank, task.shape[1])))
        tensors.append(OutputTensor(b, dtype, (task.shape[0], rank)))
    return tensors


def factor_tensor(
    task: TensorTask, output: AdapterOutput, dtype: str, statistics: Statistics | None, chunk: int
) -> Factored:
    """Merge one matrix, subtract the base, and return its best factors of the chosen rank."""
    assert task.base is not None
    rows, columns = task.shape
    merged = np.empty(task.numel, np.float64)
    wide = TensorTask(**{**task.__dict__, "dtype": "F64"})

    def keep(start: int, raw: NDArray[Any]) -> None:
        merged[start : start + raw.size] = raw

    merge_tensor(wide, keep, statistics=statistics, chunk=chunk, hash_inputs=False)
    base = np.empty(task.numel, np.float64)
    task.base.read(0, task.numel, base)
    delta = (merged - base).reshape(rows, columns)
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    rank = _rank(output, task)
    scale = (output.alpha or rank) / rank
    roots = np.sqrt(values[:rank] / scale)
    a, b = roots[:, None] * right[:rank], left[:, :rank] * roots
    stored = []
    for factor in (a, b):
        raw = np.empty(factor.size, DTYPES[dtype].storage)
        encode(np.ascontiguousarray(factor).reshape(-1), dtype, raw)
        stored.append(raw)
    norm = float(np.linalg.norm(values))
    error = float(np.linalg.norm(values[rank:])) / norm if norm else 0.0
    return Factored(stored[0], stored[1], norm, error)


def checksum(raw: NDArray[Any]) -> str:
    """Return the checksum of stored numbers."""
    return str(xxhash.xxh3_64_hexdigest(raw.data))


def adapter_config(output: AdapterOutput, tasks: Sequence[TensorTask], base: str) -> bytes:
    """Return the adapter_config.json of the written adapter."""
    ranks = {t.name.removesuffix(".weight"): _rank(output, t) for t in tasks if _adapted(t)}
    return peft_config(base, ranks, alpha=output.alpha)


def total_error(parts: Sequence[Mapping[str, float]]) -> float:
    """Return the relative error of the whole adapter from the norms and errors of its tensors."""
    squares = sum(p["norm"] ** 2 for p in parts)
    missed = sum((p["norm"] * p["error"]) ** 2 for p in parts)
    return math.sqrt(missed / squares) if squares else 0.0
