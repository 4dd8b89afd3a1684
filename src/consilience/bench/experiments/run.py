"""Running an experiment from the command line: size, seeds, where the cache and the report go."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from consilience.bench.experiments.claims import Report
from consilience.bench.experiments.family import Family
from consilience.bench.experiments.workbench import Workbench
from consilience.errors import ConsilienceError

__all__ = ["Options", "run"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Options:
    """How an experiment is to run."""

    quick: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path | None = None
    cache: Path | None = None

    def pick(self, full: Value, quick: Value) -> Value:
        """Return the first value, or the second in a quick run."""
        return quick if self.quick else full

    def report(self, slug: str, title: str, *, source: str = "") -> Report:
        """Start the report of this run."""
        return Report(slug, title, source=source, out=self.out, quick=self.quick, seeds=self.seeds)

    def workbenches(self, family: Family, *, tasks: Sequence[str] | None = None) -> list[Workbench]:
        """Return one workbench per seed."""
        return [Workbench(family, seed=seed, cache=self.cache, tasks=tasks) for seed in self.seeds]


def run(
    main: Callable[[Options], object], *, seeds: Sequence[int] = (0, 1, 2), arguments: Sequence[str] | None = None
) -> int:
    """Read the command line, run an experiment, return the exit code: 0 when it ran, whatever its claims say.

    --quick: the smallest size that runs every step (no evidence). --seeds 0,1,2. --out: folder of the report
    (default build/reproductions/SLUG). --cache: folder of trained states (default build/experiments).
    """
    doc = (sys.modules[main.__module__].__doc__ or "").strip().splitlines()
    parser = argparse.ArgumentParser(description=doc[0] if doc else None)
    parser.add_argument("--quick", action="store_true", help="the smallest size that runs every step; no evidence")
    parser.add_argument("--seeds", type=_seeds, help=f"comma-separated (default {','.join(map(str, seeds))})")
    parser.add_argument("--out", type=Path, help="folder of the report (default build/reproductions/SLUG)")
    parser.add_argument("--cache", type=Path, help="folder of trained states (default build/experiments)")
    given = parser.parse_args(arguments)
    chosen = given.seeds or (tuple(seeds)[:1] if given.quick else tuple(seeds))
    try:
        main(Options(given.quick, chosen, given.out, given.cache))
    except ConsilienceError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas are expected") from None
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: a seed is there twice")
    return seeds
