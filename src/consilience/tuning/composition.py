"""A model as a differentiable function of coefficients: base + sum over experts of coefficient x task vector.

    theta_t = theta_0,t + sum_i c[i, b(t)] tau_i,t            b(t): the block of tensor t, of a piece or group of it

Coefficients end as a recipe (`coefficients:`), which the merge engine executes out of core.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from consilience.checkpoints.layers import find_layers
from consilience.errors import Problems, RequestError
from consilience.merging.coefficients import partition_groups, piece_size
from consilience.merging.memory import merge_state_dicts
from consilience.tuning.shelf import Shelf

__all__ = ["Composition", "Granularity", "State", "Vectors", "select_tensors"]

State = Mapping[str, Tensor]
Granularity = Literal["model", "layer", "tensor"]
Vectors = Literal["difference", "ties"]

REST = "outside the layers"


def select_tensors(base: State, *, include: str = "", exclude: str = "", matrices: bool = False) -> tuple[str, ...]:
    """Return the float tensors whose names match `include` and not `exclude`, in the base's order.

    >>> select_tensors({"h.0.weight": torch.ones(2, 2), "h.0.bias": torch.ones(2)}, exclude=".*bias")
    ('h.0.weight',)

    Regular expressions match from the start of a name; empty: not given. matrices: tensors of two dimensions only.
    """
    wanted, unwanted = re.compile(include), re.compile(exclude or r"(?!)")
    return tuple(
        name
        for name, value in base.items()
        if value.is_floating_point()
        and wanted.match(name)
        and not unwanted.match(name)
        and (value.ndim == 2 or not matrices)
    )


class Composition:
    """A base and experts, as a function of a coefficient per expert and block.

    >>> base, a = {"w": torch.zeros(2), "v": torch.zeros(1)}, {"w": torch.ones(2), "v": torch.ones(1)}
    >>> composition = Composition(base, {"a": a}, pieces={"w": 2})
    >>> composition.blocks
    ('w[0]', 'w[1]', 'v')
    >>> composition.parameters(torch.tensor([[0.5, 1.0, 2.0]]))["w"].tolist()
    [0.5, 1.0]

    granularity: blocks are the whole "model", a "layer" (with one block for what is outside the layers), or a "tensor".
    tensors: those that take part (default: all float tensors); the others stay at the base. With "tensor" granularity,
    pieces cut a tensor into contiguous pieces (number by name; fewer where a tensor is too small), and groups split
    every tensor's elements at random (by seed and name). vectors: "difference", or "ties": trimmed to the `density`
    share of the whole model and rid of conflicts of sign, as the method ties_arithmetic has them.

    Task vectors are float32 (float64 for a float64 base), in memory, or with `scratch` in a file there that is mapped;
    experts may be mappings that read a tensor when asked. Experts are in the order of their names.
    `partition` holds, by tensor, the group of every element, and `index` the blocks of every tensor.
    Raises RequestError listing the experts whose tensors do not fit the base, and what is not finite.
    """

    def __init__(
        self,
        base: State,
        experts: Mapping[str, State],
        *,
        granularity: Granularity = "tensor",
        tensors: Sequence[str] | None = None,
        pieces: Mapping[str, int] | None = None,
        groups: int | None = None,
        seed: int = 0,
        vectors: Vectors = "difference",
        density: float = 0.2,
        scratch: Path | None = None,
    ) -> None:
        self.base, self._experts = base, {name: experts[name] for name in sorted(experts)}
        self.names = tuple(self._experts)
        self.tensors = tuple(select_tensors(base) if tensors is None else tensors)
        self.groups, self.seed, self.density, self.vectors = groups, seed, density, vectors
        self._check(granularity, pieces or {})
        found = {name: (torch.float64 if base[name].dtype == torch.float64 else torch.float32) for name in self._all()}
        self._start = {name: base[name].detach().to(dtype) for name, dtype in found.items()}
        self.task_vectors = self._task_vectors(found, Shelf(scratch))
        self.index: dict[str, range] = {}
        self.partition: dict[str, Tensor] = {}
        self.blocks = self._blocks(granularity, pieces or {})

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of experts and blocks."""
        return len(self.names), len(self.blocks)

    def _all(self) -> list[str]:
        return list(select_tensors(self.base)) if self.vectors == "ties" else list(self.tensors)

    def _check(self, granularity: Granularity, pieces: Mapping[str, int]) -> None:
        problems = Problems()
        if not self.names or not self.tensors:
            problems.add(f"{len(self.names)} experts and {len(self.tensors)} tensors; there must be some of both")
        for name in self.tensors:
            if name not in self.base or not self.base[name].is_floating_point():
                problems.add(f"tensor {name!r} is no float tensor of the base; leave it out")
        if granularity != "tensor" and (pieces or self.groups is not None):
            problems.add(f"pieces and groups divide tensors, but the blocks are a {granularity} each; use 'tensor'")
        if pieces and self.groups is not None:
            problems.add("a tensor is cut into pieces or split into groups, not both")
        problems.extend(
            f"pieces of {name!r}: {count}; use 1 or more of a tensor that takes part"
            for name, count in pieces.items()
            if count < 1 or name not in self.tensors
        )
        if self.groups is not None and self.groups < 1:
            problems.add(f"groups {self.groups}: use 1 or more")
        problems.raise_if_any(RequestError, "composition")
        broken = [name for name in self._all() if not bool(torch.isfinite(self.base[name]).all())]
        if broken:
            problems.add(f"the base: NaN or infinity in {', '.join(broken[:3])}")
        for expert, state in self._experts.items():
            for name in self._all():
                held = state.get(name)
                if held is None or held.shape != self.base[name].shape:
                    found = "missing" if held is None else list(held.shape)
                    problems.add(f"expert {expert!r}: {name} is {found}, the base has {list(self.base[name].shape)}")
                elif not bool(torch.isfinite(held).all()):
                    problems.add(f"expert {expert!r}: NaN or infinity in {name}")
        problems.raise_if_any(RequestError, "composition")

    def _task_vectors(self, dtypes: Mapping[str, torch.dtype], shelf: Shelf) -> dict[str, Tensor]:
        """Return the task vectors of every tensor, (experts, *shape)."""
        found = {
            name: shelf.put(
                torch.stack([s[name].detach().to(dtype) - self._start[name] for s in self._experts.values()])
            )
            for name, dtype in dtypes.items()
        }
        if self.vectors == "difference":
            return found
        zeros = {name: torch.zeros_like(value) for name, value in self._start.items()}
        each = {e: {name: value[i] for name, value in found.items()} for i, e in enumerate(self.names)}
        kept = [
            merge_state_dicts(
                "ties_arithmetic", zeros, each, density=self.density, weight={e: float(e == one) for e in self.names}
            )
            for one in self.names
        ]
        return {name: shelf.put(torch.stack([state.pop(name) for state in kept])) for name in found}

    def _blocks(self, granularity: Granularity, pieces: Mapping[str, int]) -> tuple[str, ...]:
        blocks: list[str] = []
        if granularity != "tensor":
            scheme = find_layers(self.tensors, {})
            for name in self.tensors:
                parts = scheme.split(name) if granularity == "layer" else None
                block = "model" if granularity == "model" else f"{parts[0]}{parts[1]}" if parts else REST
                if block not in blocks:
                    blocks.append(block)
                place = blocks.index(block)
                self.index[name] = range(place, place + 1)
            return tuple(blocks)
        for name in self.tensors:
            size = self.base[name].numel()
            count = 1
            if self.groups is not None:
                count = max(min(self.groups, size), 1)
                self.partition[name] = torch.from_numpy(partition_groups(name, 0, size, count, self.seed))
            elif name in pieces and size:
                count = -(-size // piece_size(size, pieces[name]))
            self.index[name] = range(len(blocks), len(blocks) + count)
            blocks += [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]
        return tuple(blocks)

    def parameters(self, values: Tensor) -> dict[str, Tensor]:
        """Return the merged tensors that take part; gradients flow to `values`, (experts, blocks)."""
        if tuple(values.shape) != self.shape:
            raise RequestError(f"coefficients {list(values.shape)}, but there are {list(self.shape)} (experts, blocks)")
        out = {}
        for name, start in self._start.items():
            ways = self.task_vectors[name]
            if name not in self.index:
                continue
            own = values[:, self.index[name].start : self.index[name].stop].to(start.dtype)
            if name in self.partition:
                scaled = own[:, self.partition[name]] * ways.flatten(1)
                out[name] = start + scaled.sum(dim=0).reshape(start.shape)
            elif own.shape[1] > 1:
                size = piece_size(start.numel(), own.shape[1])
                spread = own.repeat_interleave(size, dim=1)[:, : start.numel()]
                out[name] = start + (spread * ways.flatten(1)).sum(dim=0).reshape(start.shape)
            else:
                out[name] = start + torch.tensordot(own[:, 0], ways, dims=1)
        return out

    def gradient(self, slopes: Mapping[str, Tensor]) -> Tensor:
        """Return d loss / d coefficients, (experts, blocks), from d loss / d tensor; tensors without one count 0."""
        out = torch.zeros(self.shape, dtype=torch.float64)
        for name, slope in slopes.items():
            if name not in self.index:
                continue
            each = (self.task_vectors[name] * slope).flatten(1).to(torch.float64)
            blocks = self.index[name]
            if name in self.partition:
                out[:, blocks.start : blocks.stop].index_add_(1, self.partition[name], each)
            else:
                size = piece_size(each.shape[1], len(blocks)) if each.shape[1] else 1
                for place, piece in zip(blocks, torch.split(each, size, dim=1), strict=True):
                    out[:, place] += piece.sum(dim=1)
        return out

    def coefficients(self, values: Tensor) -> list[dict[str, Any]]:
        """Return the entries of a recipe's `coefficients`."""
        table = values.detach().to(torch.float64).tolist()
        by_place: dict[tuple[int, int, bool], list[str]] = {}
        for name, blocks in self.index.items():
            key = (blocks.start, blocks.stop, name in self.partition and len(blocks) > 1)
            by_place.setdefault(key, []).append(name)
        entries: list[dict[str, Any]] = []
        for (start, stop, split), names in by_place.items():
            entry: dict[str, Any] = {"tensors": names[0] if len(names) == 1 else names}
            if split:
                entry["partition"] = {"groups": stop - start, "seed": self.seed}
            for expert, row in zip(self.names, table, strict=True):
                entry[expert] = row[start] if stop - start == 1 else row[start:stop]
            entries.append(entry)
        return entries

    def recipe(self, values: Tensor, *, base: str, experts: Mapping[str, str]) -> dict[str, Any]:
        """Return the merge as a recipe in plain data; base and experts are references.

        Where one block holds all float tensors of the base, the recipe has plain weights.
        """
        if set(experts) != set(self.names):
            raise RequestError(f"experts {sorted(experts)} are not those that were merged, {sorted(self.names)}")
        content: dict[str, Any] = {"version": 1, "method": self.method, "base": base, "experts": dict(experts)}
        parameters: dict[str, Any] = {"density": self.density} if self.vectors == "ties" else {}
        if self.blocks == ("model",) and set(self.tensors) == set(select_tensors(self.base)):
            rows = values.detach().to(torch.float64)[:, 0].tolist()
            parameters = {"weight": dict(zip(self.names, rows, strict=True)), **parameters}
        else:
            content["coefficients"] = self.coefficients(values)
        return {**content, "parameters": parameters} if parameters else content

    @property
    def method(self) -> str:
        """The merging method that makes the same model."""
        return "ties_arithmetic" if self.vectors == "ties" else "task_arithmetic"

    def state(self, values: Tensor) -> dict[str, Tensor]:
        """Return the merged state: the bytes that the recipe gives."""
        given: dict[str, Any] = {"density": self.density} if self.vectors == "ties" else {}
        kept = {name: {t: state[t] for t in self.base if t in state} for name, state in self._experts.items()}
        return merge_state_dicts(self.method, self.base, kept, coefficients=self.coefficients(values), **given)
