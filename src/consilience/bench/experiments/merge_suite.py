"""Suites for merged experts: domains with an expert and tests, tasks that show forgetting, methods with grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from consilience.errors import DataError, Problems, did_you_mean

__all__ = ["Domain", "Entry", "MergeSuite", "MethodEntry"]

_VERSION = 1
_SPLITS = ("dev", "test")
_KEYS = ("version", "name", "domains", "forgetting", "methods", "examples", "chance", "subtract_chance")
_DOMAIN_KEYS = ("expert", "tests", "validation")
_METHOD_KEYS = ("name", "method", "parameters", "grid", "needs")


class Entry(NamedTuple):
    """A split of a task, written TASK@SPLIT."""

    task: str
    split: str

    def __str__(self) -> str:
        return f"{self.task}@{self.split}"


@dataclass(frozen=True)
class Domain:
    """What one expert is for: the task it is trained on, what it is tested on, what parameters are chosen on."""

    expert: str
    tests: tuple[Entry, ...]
    validation: tuple[Entry, ...]


@dataclass(frozen=True)
class MethodEntry:
    """A way of merging: a method with fixed parameters, a grid to choose others from, kinds of statistics it needs."""

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergeSuite:
    """Everything that defines a comparison of merging methods except the models; see `open`."""

    name: str
    domains: Mapping[str, Domain]
    forgetting: tuple[Entry, ...]
    methods: tuple[MethodEntry, ...]
    examples: int = 128
    chance: Mapping[str, float] = field(default_factory=dict)
    subtract_chance: bool = False

    @property
    def experts(self) -> tuple[str, ...]:
        """The tasks of the experts, in the order of the domains."""
        return tuple(domain.expert for domain in self.domains.values())

    @staticmethod
    def open(path: str | Path) -> MergeSuite:
        """Read a suite file.

            version: 1
            domains:
              intents: {expert: banking77, tests: [banking77@test], validation: [banking77@dev]}
              tone: {expert: sst2, tests: [sst2@test], validation: [sst2@dev]}
            forgetting: [clinc150@test]
            methods: [
              {name: average, method: linear},
              {name: TIES, method: ties, parameters: {density: 0.3}, grid: {lambda: [0.5, 1.0]}},
              {name: Fisher, method: fisher, needs: [fisher]}]

        Tasks are those of the family that the suite is run with. tests and forgetting name test splits, validation dev
        splits. forgetting: general tasks that no expert was trained on. needs: kinds of statistics, gathered on
        `examples` training texts per expert (128). chance: score of guessing per task; with `subtract_chance` it is
        taken off every score before dividing.

        Raises DataError with every problem: unknown keys, an entry that is in tests or forgetting and in validation
        too, validation on a test split, forgetting measured on an expert's own task.
        """
        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"suite {path}: cannot be read ({error})") from error
        if not isinstance(content, dict):
            raise DataError(f"suite {path}: a mapping with the key 'domains' is expected")
        return MergeSuite.of(content, name=path.stem)

    @staticmethod
    def of(content: Mapping[str, Any], *, name: str = "suite") -> MergeSuite:
        """Make a suite of the content of a suite file; see `open`."""
        problems = Problems()
        _keys(content, _KEYS, "", problems)
        if content.get("version", _VERSION) != _VERSION:
            problems.add(f"version: {content['version']!r}; this program reads version {_VERSION}")
        domains = {}
        for key, given in dict(content.get("domains") or {}).items():
            _keys(given, _DOMAIN_KEYS, f"domains.{key}.", problems)
            expert = str(given.get("expert", ""))
            tests = _entries(given.get("tests", ()), "test", f"domains.{key}.tests", problems)
            validation = _entries(given.get("validation", ()), "dev", f"domains.{key}.validation", problems)
            if not expert or not tests:
                problems.add(f"domains.{key}: an expert and at least one test are needed")
            domains[str(key)] = Domain(expert, tests, validation)
        if len(domains) < 2:
            problems.add(f"domains: {len(domains)} given; merging needs at least two")
        experts = [domain.expert for domain in domains.values()]
        if len(set(experts)) < len(experts):
            problems.add(f"domains: an expert is there twice ({', '.join(experts)})")
        forgetting = _entries(content.get("forgetting", ()), "test", "forgetting", problems)
        problems.extend(f"forgetting: {one}: an expert was trained on it" for one in forgetting if one.task in experts)
        methods = tuple(_method(entry, problems) for entry in content.get("methods") or ())
        names = [entry.name for entry in methods]
        if not methods or len(set(names)) < len(names):
            problems.add(f"methods: {', '.join(names) or 'none'}; give at least one, each with a name of its own")
        validated = {entry for domain in domains.values() for entry in domain.validation}
        measured = {entry for domain in domains.values() for entry in domain.tests} | set(forgetting)
        problems.extend(f"{one}: in validation and in test; a task serves one purpose" for one in validated & measured)
        if any(entry.grid for entry in methods) and not all(domain.validation for domain in domains.values()):
            problems.add("methods have grids, but a domain has no validation to choose by")
        problems.raise_if_any(DataError, f"suite {name}")
        return MergeSuite(
            str(content.get("name", name)),
            domains,
            forgetting,
            methods,
            int(content.get("examples", MergeSuite.examples)),
            {str(task): float(value) for task, value in dict(content.get("chance") or {}).items()},
            bool(content.get("subtract_chance", False)),
        )


def _method(given: Any, problems: Problems) -> MethodEntry:
    if not isinstance(given, Mapping) or "method" not in given:
        problems.add(f"methods: {given!r}: a mapping with the key 'method' is expected")
        return MethodEntry("", "")
    name = str(given.get("name", given["method"]))
    _keys(given, _METHOD_KEYS, f"methods.{name}.", problems)
    grid = {str(key): list(values) for key, values in dict(given.get("grid") or {}).items()}
    parameters = {str(key): value for key, value in dict(given.get("parameters") or {}).items()}
    return MethodEntry(name, str(given["method"]), parameters, grid, tuple(given.get("needs") or ()))


def _entries(given: Any, split: str, where: str, problems: Problems) -> tuple[Entry, ...]:
    found = []
    for text in given or ():
        task, _, named = str(text).partition("@")
        if named not in _SPLITS:
            problems.add(f"{where}: {text!r}: TASK@SPLIT is expected, with the split {' or '.join(_SPLITS)}")
        elif named != split:
            problems.add(f"{where}: {text}: the split has to be {split}")
        found.append(Entry(task, named))
    return tuple(found)


def _keys(content: Any, known: Sequence[str], where: str, problems: Problems) -> None:
    for key in content:
        if key not in known:
            problems.add(f"unknown key '{where}{key}'{did_you_mean(str(key), known)}")
