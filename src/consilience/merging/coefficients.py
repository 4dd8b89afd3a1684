"""Coefficients of task vectors by tensor, piece or group of entries: what learners find, written into a recipe.

An entry `{tensors: PATTERN, EXPERT: number | [numbers], partition: {groups: K, seed: S}}` gives the coefficients of the
tensors it matches; the first entry that matches a tensor counts. A pattern is a tensor's full name or a glob with
`*`, `?` or `[`; several are written as a list. An expert that an entry does not name has the coefficient 0 there, and a
tensor that no entry matches stays as it is in the base.

A list cuts the flattened tensor into pieces of equal size, the last one shorter: n numbers for m elements make pieces
of ceil(m / n). With `partition` the numbers are those of K groups: element j of a tensor is in the group
floor(K u_j / 2^32), where u_j is draw j of the stream of (S, "partition", the tensor's name).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import Problems, did_you_mean

if TYPE_CHECKING:
    from consilience.merging.method import Method
    from consilience.merging.task import TensorTask

__all__ = [
    "CoefficientEntry",
    "Coefficients",
    "attach_coefficients",
    "check_coefficients",
    "parse_coefficients",
    "partition_groups",
    "piece_size",
]

_RESERVED = ("tensors", "partition")
_REPLACED = ("weight", "lambda", "normalize")


@dataclass(frozen=True)
class CoefficientEntry:
    """One entry as written: patterns, numbers by expert, and the number of groups (None: pieces) with their seed."""

    tensors: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]
    groups: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Coefficients:
    """The coefficients of one tensor, an entry per expert in the order of the tensor's experts.

    >>> pieces = Coefficients((0.5, (1.0, 2.0)))
    >>> pieces.of(1, 0, 3, "w", 3, np.float32).tolist()
    [1.0, 1.0, 2.0]
    """

    values: tuple[float | tuple[float, ...], ...]
    groups: int | None = None
    seed: int = 0

    @property
    def plain(self) -> tuple[float, ...] | None:
        """One number per expert, where none has several."""
        found = tuple(value for value in self.values if not isinstance(value, tuple))
        return found if len(found) == len(self.values) else None

    def of(self, expert: int, start: int, stop: int, tensor: str, size: int, dtype: Any) -> NDArray[Any]:
        """Return an expert's coefficients of the elements [start, stop) of a tensor with `size` elements."""
        value = self.values[expert]
        if not isinstance(value, tuple):
            return np.full(stop - start, value, dtype)
        numbers = np.array(value, dtype)
        if self.groups is None:
            return numbers[np.arange(start, stop) // piece_size(size, len(value))]
        return numbers[partition_groups(tensor, start, stop, self.groups, self.seed)]


def piece_size(size: int, pieces: int) -> int:
    """Return how many elements each piece of a tensor has, the last one excepted.

    >>> piece_size(10, 4), piece_size(10, 1)
    (3, 10)
    """
    return -(-size // pieces)


def partition_groups(tensor: str, start: int, stop: int, groups: int, seed: int) -> NDArray[np.int64]:
    """Return the groups (0 to groups - 1) of the elements [start, stop) of a tensor.

    >>> whole = partition_groups("w", 0, 9, 3, seed=1)
    >>> (partition_groups("w", 4, 9, 3, seed=1) == whole[4:]).all()
    np.True_
    """
    drawn = uniform_bits(stream_key(seed, "partition", tensor), start, stop - start).astype(np.uint64)
    return (drawn * np.uint64(groups) >> np.uint64(32)).astype(np.int64)


def parse_coefficients(value: Any, experts: Sequence[str], problems: Problems) -> tuple[CoefficientEntry, ...]:
    """Return the entries of a recipe's `coefficients`; what is wrong with them is recorded.

    >>> parse_coefficients([{"tensors": "*", "a": 0.5, "b": [1, 2]}], ("a", "b"), Problems())[0].values
    {'a': (0.5,), 'b': (1.0, 2.0)}
    """
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        problems.add(f"coefficients: expected a list of {{tensors: PATTERN, EXPERT: number}}, found {value!r}")
        return ()
    problems.extend(
        f"experts.{name}: an expert of this name cannot have `coefficients`; choose another name"
        for name in experts
        if name in _RESERVED
    )
    return tuple(_entry(entry, f"coefficients[{place}]", experts, problems) for place, entry in enumerate(value))


def _entry(entry: Any, where: str, experts: Sequence[str], problems: Problems) -> CoefficientEntry:
    if not isinstance(entry, Mapping):
        problems.add(f"{where}: expected {{tensors: PATTERN, EXPERT: number}}, found {entry!r}")
        return CoefficientEntry((), {})
    written = entry.get("tensors")
    patterns = [written] if isinstance(written, str) else written
    if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(p, str) for p in patterns):
        problems.add(f"{where}.tensors: expected a pattern or a list of patterns, found {written!r}")
        patterns = []
    groups, seed = _partition(entry.get("partition"), f"{where}.partition", problems)
    values: dict[str, tuple[float, ...]] = {}
    for name, given in entry.items():
        if name in _RESERVED:
            continue
        if name not in experts:
            problems.add(f"{where}: unknown expert {name!r}{did_you_mean(str(name), experts)}")
        listed = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        if not listed or any(
            isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in listed
        ):
            problems.add(f"{where}.{name}: {given!r} is not a number or a list of numbers")
            continue
        if groups is not None and len(listed) not in (1, groups):
            problems.add(f"{where}.{name}: {len(listed)} numbers for {groups} groups; give one, or one per group")
        values[str(name)] = tuple(float(n) for n in listed)
    if len(entry) == sum(name in entry for name in _RESERVED):
        problems.add(f"{where}: no expert has a coefficient; write one per expert (0 keeps the base)")
    return CoefficientEntry(tuple(patterns), values, groups, seed)


def _partition(value: Any, where: str, problems: Problems) -> tuple[int | None, int]:
    if value is None:
        return None, 0
    if not isinstance(value, Mapping) or set(value) - {"groups", "seed"} or "groups" not in value:
        problems.add(f"{where}: expected {{groups: K, seed: S}}, found {value!r}")
        return None, 0
    groups, seed = value["groups"], value.get("seed", 0)
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (groups, seed))
    if not whole or groups < 1:
        problems.add(f"{where}: groups {groups!r} and seed {seed!r}; both are whole numbers, groups 1 or more")
        return None, 0
    return groups, seed


def check_coefficients(entries: Sequence[CoefficientEntry], method: Method, written: Sequence[str]) -> list[str]:
    """Return what is wrong with giving coefficients to a method; `written` are the parameters that are given."""
    if not entries:
        return []
    return [
        f"parameters.{name}: the coefficients take its place; remove one of the two (method {method.name!r})"
        for name in _REPLACED
        if name in {given.rstrip("_") for given in written}
    ]


def attach_coefficients(
    tasks: Sequence[TensorTask],
    entries: Sequence[CoefficientEntry],
    problems: Problems,
    note: Callable[[str], None] = lambda notice: None,
) -> list[TensorTask]:
    """Return the tasks with their coefficients.

    Records methods without use for them, patterns that match no merged tensor and lists longer than a tensor; `note`
    is told of tensors that no entry matches: they are kept as the base has them.
    """
    if not entries or problems:
        return list(tasks)
    merged = [task for task in tasks if task.copy is None]
    if unfit := next((task for task in merged if task.steps().linear is None), None):
        problems.add(
            f"coefficients: method {unfit.method!r} does not add up task vectors, each with a coefficient, and has no "
            "use for them; task_arithmetic and ties_arithmetic do"
        )
        return list(tasks)
    used: dict[tuple[int, str], bool] = {(i, p): False for i, entry in enumerate(entries) for p in entry.tensors}
    found: dict[str, Coefficients] = {}
    for task in merged:
        chosen: CoefficientEntry | None = None
        for place, entry in enumerate(entries):
            fits = [p for p in entry.tensors if _fits(p, task.name)]
            for pattern in fits:
                used[place, pattern] = True
            if fits and chosen is None:
                chosen = entry
                found[task.name] = _bound(task, entry, f"coefficients[{place}]", problems)
    problems.extend(
        f"coefficients[{place}].tensors: {pattern!r} matches no merged tensor; write a full name or a pattern with *"
        for (place, pattern), hit in used.items()
        if not hit
    )
    if left := [task.name for task in merged if task.name not in found]:
        shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        note(f"{len(left)} tensor(s) match no entry of coefficients and are kept as the base has them ({shown})")
    nothing = Coefficients(())
    return [
        task
        if task.copy is not None
        else replace(task, coefficients=found.get(task.name, replace(nothing, values=(0.0,) * len(task.experts))))
        for task in tasks
    ]


def _fits(pattern: str, name: str) -> bool:
    return pattern == name or (any(c in pattern for c in "*?[") and fnmatchcase(name, pattern))


def _bound(task: TensorTask, entry: CoefficientEntry, where: str, problems: Problems) -> Coefficients:
    values: list[float | tuple[float, ...]] = []
    for name in task.expert_names:
        numbers = entry.values.get(name, (0.0,))
        if len(numbers) == 1:
            values.append(numbers[0])
            continue
        values.append(numbers)
        if entry.groups is not None:
            pieces = min(entry.groups, task.numel)
        else:
            pieces = -(-task.numel // piece_size(task.numel, len(numbers))) if task.numel else 0
        if len(numbers) > pieces:
            problems.add(
                f"{where}.{name}: {len(numbers)} numbers, but {task.name!r} with {task.numel} elements has "
                f"{pieces} {'groups' if entry.groups is not None else 'pieces of equal size'}; give fewer"
            )
    return Coefficients(tuple(values), entry.groups, entry.seed)
