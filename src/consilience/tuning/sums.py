"""Running sums of one pass over data: float64, bounded, saved between batches so that a killed pass goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from consilience.core.atomic import storage_error, sync_folder
from consilience.errors import NonFiniteError

__all__ = ["Shapes", "Sums", "divide_passes"]

Shapes = Mapping[str, tuple[int, ...]]


def divide_passes(shapes: Shapes, memory: int) -> list[list[str]]:
    """Divide tensors into passes, in their order, whose float64 sums take at most `memory` bytes (or one tensor).

    >>> divide_passes({"a": (2, 2), "b": (2, 2), "c": (9, 9)}, 64)
    [['a', 'b'], ['c']]
    """
    passes: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = 8 * math.prod(shape)
        if not passes or size > room:
            passes.append([])
            room = memory
        passes[-1].append(name)
        room -= size
    return passes


class Sums:
    """Sums of tensors, each with the number of things that were added.

    >>> sums = Sums({"w": (2,)}, "cpu")
    >>> sums.add("w", torch.tensor([1.0, 3.0]), 2)
    >>> [(name, mean.tolist()) for name, mean in sums.means()]
    [('w', [0.5, 1.5])]
    """

    def __init__(self, shapes: Shapes, device: str | torch.device) -> None:
        self.totals = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
        self.counts: dict[str, float] = dict.fromkeys(shapes, 0)
        self.batches = 0

    def add(self, name: str, value: Tensor, count: float) -> None:
        """Add the sum over `count` things."""
        self.totals[name] += value
        self.counts[name] += count

    def means(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and mean of each tensor, float32 on the CPU; zeros where nothing was added.

        Raises NonFiniteError naming a tensor whose sum is not finite.
        """
        for name, total in self.totals.items():
            mean = (total / max(self.counts[name], 1)).to("cpu", torch.float32)
            if not bool(torch.isfinite(mean).all()):
                raise NonFiniteError(
                    f"tensor {name!r}: the statistic is not finite (infinite or NaN); look for NaN in the weights, "
                    "for half precision, and for examples without outcomes"
                )
            yield name, mean.contiguous()

    def save(self, path: Path, unit: str) -> None:
        """Write the state, whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        facts = {"unit": unit, "batches": self.batches, "counts": self.counts}
        try:
            save_file({n: t.cpu() for n, t in self.totals.items()}, temporary, metadata={"facts": json.dumps(facts)})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise storage_error(path, error) from error

    def load(self, path: Path, unit: str) -> bool:
        """Take up the saved state of the same unit of work; return whether there was one."""
        if not path.is_file():
            return False
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            if facts["unit"] != unit or set(facts["counts"]) != set(self.counts):
                return False
            for name, total in self.totals.items():
                total.copy_(file.get_tensor(name))
        self.counts, self.batches = facts["counts"], facts["batches"]
        return True
