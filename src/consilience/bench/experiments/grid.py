"""A grid of merges: size x strength of the base x number of experts x method, on held-in and held-out tasks.

Every cell is one merge of one subset of the experts, measured on the tasks of the subset (held-in) and on tasks that no
expert was trained for (held-out). The work is a Job: cells that are finished are not computed again.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from consilience.bench.experiments.family import Family
from consilience.bench.experiments.merge_suite import MethodEntry
from consilience.bench.experiments.workbench import Workbench
from consilience.core.atomic import write_text_atomic
from consilience.core.hashing import fingerprint
from consilience.core.jobs import MANIFEST, Budget, Job
from consilience.core.progress import Progress
from consilience.core.randomness import stream_key, uniform_bits
from consilience.core.records import read_record, write_record
from consilience.errors import ConsilienceError, DataError, LeakageError, Problems, WorkError, did_you_mean

__all__ = ["Cell", "Grid", "GridFamily", "GridResult", "run_grid"]

_VERSION = 1
_FILE = "cells.json"
REFERENCES = ("base", "experts", "multitask")


class GridFamily(Family, Protocol):
    """A family with tasks that no model of it is trained on."""

    @property
    def held_out(self) -> tuple[str, ...]:
        """Tasks that are only measured."""
        ...

    @property
    def sources(self) -> Mapping[str, str]:
        """The dataset behind each task, held-out ones too, and behind everything else that is trained on."""
        ...

    def chance(self, task: str) -> float:
        """Return the score of guessing."""
        ...


@dataclass(frozen=True)
class Grid:
    """What is crossed; see `open`."""

    sizes: tuple[str, ...]
    bases: tuple[str, ...]
    counts: tuple[int, ...]
    methods: tuple[MethodEntry, ...]
    subsets: int = 3
    tuning_subsets: int = 1
    seeds: tuple[int, ...] = (0,)

    @staticmethod
    def open(path: str | Path) -> Grid:
        """Read a grid file.

            version: 1
            sizes: [small, medium]        # from small to large
            bases: [weak, strong]         # from weak to strong
            counts: [2, 4, 6]             # experts merged
            subsets: 3                    # of the experts, for each count (all where there are fewer)
            tuning_subsets: 1             # those of them that parameters are chosen on, by their dev splits
            seeds: [0]                    # of training
            methods: [{name: averaging, method: linear}, {name: TA, method: task_arithmetic, grid: {lambda: [0.3, 1]}}]

        Raises DataError with every problem.
        """
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"grid {path}: cannot be read ({error})") from error
        return Grid.of(content if isinstance(content, dict) else {}, name=str(path))

    @staticmethod
    def of(content: Mapping[str, Any], *, name: str = "grid") -> Grid:
        """Make a grid of the content of a grid file; see `open`."""
        problems = Problems()
        known = {"version", *(field.name for field in fields(Grid))}
        problems.extend(f"key {key!r} is unknown{did_you_mean(key, known)}" for key in content if key not in known)
        if content.get("version", _VERSION) != _VERSION:
            problems.add(f"version: {content['version']!r}; this program reads version {_VERSION}")
        lists = {key: list(content.get(key) or ()) for key in ("sizes", "bases", "counts", "methods")}
        problems.extend(f"{key}: nothing is given" for key, values in lists.items() if not values)
        problems.extend(f"{key}: a value is there twice" for key, v in lists.items() if len({*map(str, v)}) < len(v))
        entry_keys = {field.name for field in fields(MethodEntry)} - {"needs"}
        entries = []
        for given in lists["methods"]:
            problems.extend(f"methods: key {key!r} is unknown" for key in given if key not in entry_keys)
            if "method" in given:
                named = {"name": given["method"], **given}
                entries.append(MethodEntry(**{key: named[key] for key in entry_keys if key in named}))
            else:
                problems.add(f"methods: {given} names no method")
        problems.extend(
            f"counts: {count!r} experts" for count in lists["counts"] if type(count) is not int or count < 1
        )
        problems.raise_if_any(DataError, f"grid {name}")
        numbers = {key: int(content[key]) for key in ("subsets", "tuning_subsets") if key in content}
        seeds = tuple(int(seed) for seed in content.get("seeds", Grid.seeds))
        return Grid(
            tuple(map(str, lists["sizes"])),
            tuple(map(str, lists["bases"])),
            tuple(sorted(lists["counts"])),
            tuple(entries),
            seeds=seeds,
            **numbers,
        )

    def drawn(self, tasks: Sequence[str], count: int) -> list[tuple[str, ...]]:
        """Return the subsets of `count` tasks: seeded, all different, in the order of the tasks.

        >>> grid = Grid(("s",), ("b",), (2,), (), subsets=5)
        >>> grid.drawn("abc", 2)
        [('b', 'c'), ('a', 'b'), ('a', 'c')]
        >>> grid.drawn("abc", 3)
        [('a', 'b', 'c')]
        """
        found: list[tuple[str, ...]] = []
        for attempt in range(200):
            draws = uniform_bits(stream_key(attempt, "subset", str(count)), 0, len(tasks))
            chosen = {tasks[index] for index in np.argsort(draws, kind="stable")[:count]}
            subset = tuple(task for task in tasks if task in chosen)
            if subset not in found:
                found.append(subset)
            if len(found) == self.subsets:
                break
        return found


@dataclass(frozen=True)
class Cell:
    """One model that was measured: a merge, or a reference (base, experts, multitask: `count` 0, all tasks).

    `right` holds one score per test example, 1 or 0, by task. `failed` says why there is none.
    """

    seed: int
    size: str
    base: str
    count: int
    subset: tuple[str, ...]
    method: str
    parameters: Mapping[str, Any]
    right: Mapping[str, NDArray[np.float64]]
    seconds: float = 0.0
    failed: str = ""


@dataclass(frozen=True)
class GridResult:
    """All cells of a grid, with the tasks and what guessing scores on each."""

    grid: Grid
    tasks: tuple[str, ...]
    held_out: tuple[str, ...]
    chance: Mapping[str, float]
    cells: tuple[Cell, ...]

    def reference(self, cell: Cell, kind: str) -> Cell:
        """Return a reference of the cell's seed, size and base."""
        key = (cell.seed, cell.size, cell.base, kind)
        return next(c for c in self.cells if not c.count and (c.seed, c.size, c.base, c.method) == key)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the tidy table: one row per cell and task."""
        for cell in self.cells:
            common = {
                **{key: getattr(cell, key) for key in ("seed", "size", "base", "count")},
                "subset": "+".join(cell.subset),
                "method": cell.method,
                "parameters": " ".join(f"{key}={value}" for key, value in cell.parameters.items()),
                "merge_seconds": cell.seconds,
            }
            if cell.failed:
                yield {**common, "task": "", "split": "", "score": "", "normalised": "", "failed": cell.failed}
            for task, scores in cell.right.items():
                split = "held-out" if task in self.held_out else "held-in"
                kind = "base" if split == "held-out" else "experts"
                own = float(self.reference(cell, kind).right[task].mean())
                score = float(scores.mean())
                normalised = f"{score / own:.6f}" if own else ""
                yield {**common, "task": task, "split": split, "score": score, "normalised": normalised, "failed": ""}


def run_grid(
    grid: Grid,
    family_of: Callable[[str, str], GridFamily],
    out: str | Path,
    *,
    cache: str | Path | None = None,
    budget: Budget | None = None,
) -> GridResult:
    """Run a grid, or go on with one that was stopped; write `table.csv` and `cells.json` to `out`.

    family_of: (size, base) -> family; all have the same tasks. Parameters are chosen on dev splits of held-in tasks,
    once per seed, size, base, count and method. The table of the same grid is the same, apart from the seconds. A cell
    that fails (NaN, out of memory) is a row that says so. Raises LeakageError where a held-out task's dataset is one
    that is trained on.
    """
    families = {(size, base): family_of(size, base) for size in grid.sizes for base in grid.bases}
    first = next(iter(families.values()))
    for (size, base), family in families.items():
        _check_held_out(family, f"{size}, {base}")
    if max(grid.counts) > len(first.tasks):
        raise DataError(f"counts: {max(grid.counts)} experts, but there are {len(first.tasks)} tasks")
    settings = {"/".join(key): fingerprint(dict(family.settings)) for key, family in families.items()}
    request = {"grid": asdict(grid), "families": settings, "version": _VERSION}
    out = Path(out)
    chance = {task: first.chance(task) for task in (*first.tasks, *first.held_out)}
    if not (out / MANIFEST).is_file() or read_record(out / MANIFEST, "manifest", 1)["identity"] != fingerprint(request):
        with Job(out, kind="grid", request=request, budget=budget) as job:
            for (size, base), family in families.items():
                for seed in grid.seeds:
                    _Block(grid, Workbench(family, seed=seed, cache=cache), family, size, base, job).run()
            cells = [entry for entry in job.done.values() if "cell" in entry]
            write_record(job.work / _FILE, "grid", _VERSION, {"cells": cells})
            result = GridResult(grid, first.tasks, first.held_out, chance, tuple(map(_cell, cells)))
            write_text_atomic(job.work / "table.csv", _table(result))
            identity = {"kind": "grid", "request": request, "identity": fingerprint(request)}
            write_record(job.work / MANIFEST, "manifest", 1, identity)
            job.publish()
    cells = read_record(out / _FILE, "grid", _VERSION)["cells"]
    return GridResult(grid, first.tasks, first.held_out, chance, tuple(map(_cell, cells)))


def _check_held_out(family: GridFamily, where: str) -> None:
    trained = {source for name, source in family.sources.items() if name not in family.held_out}
    both = [task for task in family.held_out if family.sources[task] in trained]
    if both:
        raise LeakageError(
            f"{where}: the held-out tasks {', '.join(both)} come from datasets that models are trained on"
        )


class _Block:
    """The cells of one size, base and seed."""

    def __init__(self, grid: Grid, bench: Workbench, family: GridFamily, size: str, base: str, job: Job) -> None:
        self.grid, self.bench, self.family, self.job = grid, bench, family, job
        self.at = {"seed": bench.seed, "size": size, "base": base}

    def run(self) -> None:
        """Make every cell that the journal does not hold."""
        subsets = {count: self.grid.drawn(self.bench.tasks, count) for count in self.grid.counts}
        total = len(REFERENCES) + len(self.grid.methods) * sum(map(len, subsets.values()))
        label = f"grid {self.at['size']} {self.at['base']}"
        with Progress(total, "cells", label) as bar:
            for kind in REFERENCES:
                self._unit((kind,), partial(self._reference, kind))
                bar.advance(1)
            for count, drawn in subsets.items():
                for entry, subset in product(self.grid.methods, drawn):
                    self._unit((count, entry.name, *subset), partial(self._merge, entry, subset, drawn))
                    bar.advance(1)

    def _key(self, parts: Sequence[Any]) -> str:
        return "/".join(map(str, (*self.at.values(), *parts)))

    def _unit(self, parts: Sequence[Any], make: Callable[[], dict[str, Any]]) -> None:
        key = self._key(parts)
        if key not in self.job.done:
            self.job.check()
            self.job.record(key, cell=self.at | make())

    def _reference(self, kind: str) -> dict[str, Any]:
        held_out = self.family.held_out
        if kind == "experts":
            right = self.bench.expert_scores().by_example
        else:
            state = self.bench.base if kind == "base" else self.bench.multitask()
            right = self.bench.scores(state, tasks=(*self.bench.tasks, *held_out)).by_example
        return {"count": 0, "subset": [], "method": kind, "parameters": {}, "right": _packed(right)}

    def _merge(self, entry: MethodEntry, subset: tuple[str, ...], drawn: Sequence[tuple[str, ...]]) -> dict[str, Any]:
        parameters = self._chosen(entry, len(subset), drawn[: self.grid.tuning_subsets])
        cell = {"count": len(subset), "subset": list(subset), "method": entry.name, "parameters": parameters}
        started = time.perf_counter()
        try:
            state = self.bench.merge(entry.method, tasks=subset, **entry.parameters, **parameters)
            seconds = time.perf_counter() - started
            right = self.bench.scores(state, tasks=(*subset, *self.family.held_out)).by_example
        except (WorkError, MemoryError) as error:
            return {**cell, "failed": f"{type(error).__name__}: {error}", "right": {}}
        return {**cell, "right": _packed(right), "seconds": round(seconds, 4)}

    def _chosen(self, entry: MethodEntry, count: int, subsets: Sequence[tuple[str, ...]]) -> dict[str, Any]:
        """Return the parameters of a method for a number of experts, chosen once."""
        if not entry.grid:
            return {}
        key = self._key((count, entry.name, "parameters"))
        if key not in self.job.done:
            self.job.record(key, parameters=_best(self.bench, entry, subsets))
        return dict(self.job.done[key]["parameters"])


def _best(bench: Workbench, entry: MethodEntry, subsets: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """Return the point of the highest mean over subsets of the mean dev score; the first of equal ones."""
    totals: dict[str, tuple[float, dict[str, Any]]] = {}
    for subset in subsets:
        tuned = bench.tune(entry.method, entry.grid, tasks=subset, **entry.parameters)
        for trial in tuned.trials:
            before = totals.get(str(trial.parameters), (0.0, {}))[0]
            totals[str(trial.parameters)] = (before + trial.score, dict(trial.parameters))
    return max(totals.values(), key=lambda entry: entry[0])[1]


def _packed(right: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return scores of 1 and 0 as bits."""
    for task, scores in right.items():
        if not np.isin(scores, (0.0, 1.0)).all():
            raise ConsilienceError(f"task {task}: a grid needs scores of 1 and 0, such as right and wrong")
    return {task: [len(scores), np.packbits(scores > 0).tobytes().hex()] for task, scores in right.items()}


def _cell(entry: Mapping[str, Any]) -> Cell:
    given = dict(entry["cell"])
    right = {
        task: np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=size).astype(np.float64)
        for task, (size, bits) in given.pop("right").items()
    }
    return Cell(**{**given, "subset": tuple(given["subset"])}, right=right)


def _table(result: GridResult) -> str:
    text = io.StringIO()
    rows = list(result.rows())
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
