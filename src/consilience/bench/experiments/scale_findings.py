"""What a grid says about when merging works: five comparisons, each with an interval and a verdict.

Held-in of a cell: the mean over its tasks of score(merged) / score(expert). Held-out: the mean over the held-out tasks
of score(merged) / score(base). With `above_chance`, what guessing scores is taken off first, above and below the line.
Tasks whose expert is not better than the base are left out, and counted. A comparison is a difference of two means over
cells that are otherwise alike; its 95 % interval is over other test examples (the same ones for all models) and other
subsets of experts and seeds (the same ones for all methods, sizes and bases).

The findings are those of Yadav et al. 2025, What Matters for Model Merging at Scale?, arXiv 2410.03617.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.bench.bootstrap import interval, resampled_means
from consilience.bench.experiments.grid import Cell, GridResult
from consilience.core.randomness import stream_key, uniform_bits

__all__ = ["Finding", "Findings"]

_RESAMPLES = 2000
_KINDS = ("held-in", "held-out")
At = tuple[int, str, str]  # seed, size, base
Group = tuple[str, str, int, str]  # size, base, count, method
Unit = tuple[int, tuple[str, ...]]  # seed, subset
Values = NDArray[np.float64]  # the estimate, then the resampled ones


@dataclass(frozen=True)
class Finding:
    """A comparison: what it says, the difference with its 95 % interval, and whether it holds (None: undecided)."""

    name: str
    text: str
    difference: float
    low: float
    high: float

    @property
    def holds(self) -> bool | None:
        """True where the interval lies above 0, False where it lies below."""
        return True if self.low > 0 else False if self.high < 0 else None

    def __str__(self) -> str:
        return f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


class Findings:
    """The normalised scores of a grid's cells, resampled, and the comparisons made of them."""

    def __init__(self, result: GridResult, *, above_chance: bool = False) -> None:
        self.result, self.grid = result, result.grid
        self.chance = result.chance if above_chance else dict.fromkeys(result.chance, 0.0)
        scored = _resampled(result)
        self._references = {(_at(cell), cell.method): values for cell, values in scored if not cell.count}
        self.failed = [cell for cell in result.cells if cell.failed]
        self.excluded = self._excluded()
        merged = [(cell, values) for cell, values in scored if cell.count and not cell.failed]
        self._groups = {
            kind: _grouped([(cell, self._normalised(kind, _at(cell), cell.subset, values)) for cell, values in merged])
            for kind in _KINDS
        }

    def _excluded(self) -> dict[At, list[str]]:
        """Return, per seed, size and base, the tasks whose expert is not better than the base."""
        found = {}
        for (at, kind), values in self._references.items():
            if kind == "experts":
                base = self._references[at, "base"]
                found[at] = [task for task in values if values[task][0] <= base[task][0]]
        return found

    def _normalised(self, kind: str, at: At, subset: Sequence[str], values: Mapping[str, Values]) -> Values | None:
        """Return the normalised score of a model that merges some tasks; None where no task counts."""
        if kind == "held-in":
            tasks = [task for task in subset if task not in self.excluded[at]]
            own = self._references[at, "experts"]
        else:
            tasks, own = list(self.result.held_out), self._references[at, "base"]
        if not tasks:
            return None
        return _average([(values[task] - self.chance[task]) / (own[task] - self.chance[task]) for task in tasks])

    def multitask(self, kind: str, size: str, base: str) -> Values:
        """Return the same number for the models trained on all tasks together, the mean over seeds."""
        found = [
            self._normalised(kind, at, self.result.tasks, values)
            for (at, method), values in self._references.items()
            if method == "multitask" and at[1:] == (size, base)
        ]
        return _average([values for values in found if values is not None])

    def mean(self, kind: str, **at: Any) -> Values:
        """Return the mean over the groups at size=, base=, count=, method= (all that is not named); nan without any."""
        positions = {"size": 0, "base": 1, "count": 2, "method": 3}
        chosen = [
            values
            for group, values in self._groups[kind].items()
            if all(group[positions[key]] == wanted for key, wanted in at.items())
        ]
        return _average(chosen)

    def table(self, kind: str) -> list[list[Any]]:
        """Return size, base, method, the mean at every count, and the multitask model's."""
        rows = []
        for size in self.grid.sizes:
            for base in self.grid.bases:
                for method in self.grid.methods:
                    at = {"size": size, "base": base, "method": method.name}
                    cells = [float(self.mean(kind, count=count, **at)[0]) for count in self.grid.counts]
                    rows.append([*at.values(), *cells, float(self.multitask(kind, size, base)[0])])
        return rows

    def all(self) -> list[Finding]:
        """Return the five findings, and what they consist of."""
        small, large = self.grid.sizes[0], self.grid.sizes[-1]
        weak, strong = self.grid.bases[0], self.grid.bases[-1]
        few, many = self.grid.counts[0], self.grid.counts[-1]
        found = []
        for kind in _KINDS:
            text = f"{kind}: merging works better from the {strong} base than from the {weak} one"
            found.append(_finding("F1", text, self.mean(kind, base=strong) - self.mean(kind, base=weak)))
        text = f"held-in: {large} models merge more easily than {small} ones"
        found.append(_finding("F2", text, self.mean("held-in", size=large) - self.mean("held-in", size=small)))
        text = f"held-out: merges from the {strong} base are better than that base"
        found.append(_finding("F3", text, self.mean("held-out", base=strong) - 1))
        at = {"size": large, "base": strong}
        text = f"held-out: merges of {many} {large} {strong} experts are better than the model trained on all tasks"
        merges = self.mean("held-out", count=many, **at)
        found.append(_finding("F3", text, merges - self.multitask("held-out", **at)))
        lost = {
            size: self.mean("held-in", size=size, count=few) - self.mean("held-in", size=size, count=many)
            for size in (small, large)
        }
        text = f"held-in: {large} models lose less from {few} to {many} experts than {small} ones"
        found.append(_finding("F4", text, lost[small] - lost[large]))
        spread = {size: self._spread(size) for size in (small, large)}
        text = f"held-in: methods differ less in {large} models than in {small} ones (best less worst)"
        found.append(_finding("F5", text, spread[small] - spread[large]))
        return found

    def _spread(self, size: str) -> Values:
        """Return how far the best and the worst method lie apart, the mean over bases and counts."""
        found = []
        for base in self.grid.bases:
            for count in self.grid.counts:
                at = {"size": size, "base": base, "count": count}
                found.append(np.ptp([self.mean("held-in", method=m.name, **at) for m in self.grid.methods], axis=0))
        return _average(found)


def _at(cell: Cell) -> At:
    return cell.seed, cell.size, cell.base


def _average(values: Sequence[Values]) -> Values:
    """Return the mean; nan where nothing is counted."""
    made: Values = np.mean(values, axis=0) if values else np.full(1 + _RESAMPLES, np.nan)
    return made


def _finding(name: str, text: str, values: Values) -> Finding:
    return Finding(name, text, float(values[0]), *interval(values[1:]))


def _resampled(result: GridResult) -> list[tuple[Cell, dict[str, Values]]]:
    """Return every cell with the mean score of each task and its resamples; examples are drawn once per task."""
    found: list[tuple[Cell, dict[str, Values]]] = [(cell, {}) for cell in result.cells]
    for task in (*result.tasks, *result.held_out):
        measured = [(cell, values) for cell, values in found if task in cell.right]
        if not measured:
            continue
        scores = np.stack([cell.right[task] for cell, _ in measured], axis=1)
        means = resampled_means(scores, name=task, resamples=_RESAMPLES)
        together = np.concatenate([scores.mean(axis=0)[None], means])
        for column, (_, values) in enumerate(measured):
            values[task] = together[:, column]
    return found


def _grouped(cells: Iterable[tuple[Cell, Values | None]]) -> dict[Group, Values]:
    """Return the mean of each group over its subsets and seeds, which are resampled, alike in all groups of a count."""
    members: dict[Group, dict[Unit, Values]] = {}
    for cell, values in cells:
        if values is not None:
            group = (cell.size, cell.base, cell.count, cell.method)
            members.setdefault(group, {})[cell.seed, cell.subset] = values
    units: dict[int, set[Unit]] = {}
    for group, held in members.items():
        units.setdefault(group[2], set()).update(held)
    return {group: _weighted(held, sorted(units[group[2]]), group[2]) for group, held in members.items()}


def _weighted(held: Mapping[Unit, Values], units: Sequence[Unit], count: int) -> Values:
    bits = uniform_bits(stream_key(0, "bootstrap subsets", str(count)), 0, _RESAMPLES * len(units)).astype(np.uint64)
    drawn = ((bits * np.uint64(len(units))) >> np.uint64(32)).astype(np.int64).reshape(_RESAMPLES, len(units))
    times = np.stack([(drawn == index).sum(axis=1) for index in range(len(units))], axis=1).astype(np.float64)
    times = np.concatenate([np.ones((1, len(units))), times])
    present = [index for index, unit in enumerate(units) if unit in held]
    weights = times[:, present]
    values = np.stack([held[units[index]] for index in present], axis=1)
    total = weights.sum(axis=1)
    # a resample without any of the cells that there are takes them all
    weights = np.where(total[:, None] > 0, weights, 1.0)
    made: Values = (weights * values).sum(axis=1) / weights.sum(axis=1)
    return made
