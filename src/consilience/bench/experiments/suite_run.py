"""Running a suite for merged experts: normalised performance, forgetting, time, memory, time spent on validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from consilience.bench.experiments.artefacts import gather_artefacts
from consilience.bench.experiments.cost import Cost, measure_cost
from consilience.bench.experiments.family import Split, State
from consilience.bench.experiments.merge_suite import Domain, Entry, MergeSuite, MethodEntry
from consilience.bench.experiments.scores import Scores
from consilience.bench.experiments.workbench import Workbench
from consilience.errors import RequestError

__all__ = ["Measured", "SuiteRun"]


@dataclass(frozen=True)
class Measured:
    """One model of the comparison.

    `performance`: per domain, every score over that of the domain's expert, so that the means are the normalised
    performance. `forgetting`: per general task, every score over the base's (1: nothing lost). `accuracy`: plain mean
    score per test. Of merged models also the parameters, what the merge costs (twice: `again`), the seconds spent on
    validation and statistics, and the number of trials. `skipped` says why a method could not be run.
    """

    name: str
    kind: str
    performance: Scores = field(repr=False)
    forgetting: Scores = field(repr=False)
    accuracy: Mapping[str, float] = field(repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost | None = None
    again: Cost | None = None
    validation_seconds: float = 0.0
    statistics_seconds: float = 0.0
    trials: int = 0
    state: State = field(default_factory=dict, repr=False)

    @property
    def validation_share(self) -> float:
        """Share of the time that went into validation, of merging, statistics and validation together."""
        merging = self.cost.seconds * max(self.trials, 1) if self.cost is not None else 0.0
        total = merging + self.validation_seconds + self.statistics_seconds
        return self.validation_seconds / total if total else 0.0


class SuiteRun:
    """A suite on the experts of a workbench."""

    def __init__(self, suite: MergeSuite, workbench: Workbench) -> None:
        known = workbench.family.tasks
        named = {entry.task for domain in suite.domains.values() for entry in (*domain.tests, *domain.validation)}
        unknown = sorted({*named, *suite.experts, *(entry.task for entry in suite.forgetting)} - set(known))
        if unknown or set(suite.experts) != set(workbench.tasks):
            raise RequestError(
                f"suite {suite.name}: experts {list(suite.experts)} and unknown tasks {unknown}; the workbench has "
                f"experts for {list(workbench.tasks)}, the family knows {list(known)}"
            )
        self.suite, self.bench = suite, workbench
        self.skipped: dict[str, str] = {}
        self._references: dict[tuple[str, Entry], float] = {}

    def references(self) -> list[Measured]:
        """Measure the base, every expert on everything, and the multi-task model."""
        states = {("base", "base"): self.bench.base}
        states |= {("expert", f"expert {task}"): self.bench.experts[task] for task in self.suite.experts}
        states[("multitask", "multi-task training")] = self.bench.multitask(self.suite.experts)
        return [self.measure(state, name, kind) for (kind, name), state in states.items()]

    def methods(self, *, repeats: int = 5) -> list[Measured]:
        """Tune, merge, time and measure every method; those that cannot be run are in `skipped`, with the reason."""
        found = []
        for entry in self.suite.methods:
            try:
                aux, seconds = self._artefacts(entry)
            except RequestError as error:
                self.skipped[entry.name] = str(error)
                continue
            found.append(self._method(entry, aux, seconds, repeats))
        return found

    def measure(self, state: State, name: str, kind: str, **facts: Any) -> Measured:
        """Measure one state on all domains and on the tasks that show forgetting."""
        accuracy: dict[str, float] = {}

        def over(entry: Entry, reference: float) -> Any:
            scores = self.bench.family.scores(state, entry.task, cast("Split", entry.split))
            accuracy[str(entry)] = float(scores.mean())
            return self._ratio(scores, entry, reference)

        performance = {
            key: _joined([over(entry, self._reference(key, domain, entry)) for entry in domain.tests])
            for key, domain in self.suite.domains.items()
        }
        forgetting = {str(entry): over(entry, self._of_base(entry)) for entry in self.suite.forgetting}
        return Measured(name, kind, Scores(performance), Scores(forgetting), accuracy, state=state, **facts)

    def _method(self, entry: MethodEntry, aux: Mapping[str, Any], seconds: float, repeats: int) -> Measured:
        given: dict[str, Any] = {"aux": aux} if aux else {}
        chosen = dict(entry.parameters)
        trials, validation = 0, 0.0
        if entry.grid:
            on = [one.task for domain in self.suite.domains.values() for one in domain.validation]
            tuned = self.bench.tune(
                entry.method, entry.grid, on=on, objective=self._validated, **given, **entry.parameters
            )
            chosen |= tuned.parameters
            trials, validation = len(tuned.trials), tuned.validation_seconds

        def merge() -> State:
            return self.bench.merge(entry.method, **given, **chosen)

        costs = [measure_cost(merge, repeats=repeats) for _ in range(2)]
        return self.measure(
            costs[0].result,
            entry.name,
            "method",
            parameters=chosen,
            cost=costs[0],
            again=costs[1],
            validation_seconds=validation,
            statistics_seconds=seconds,
            trials=trials,
        )

    def _validated(self, scores: Scores) -> float:
        """Return the average normalised performance on validation."""
        found = []
        for key, domain in self.suite.domains.items():
            parts = []
            for entry in domain.validation:
                reference = self._reference(key, domain, entry)
                parts.append(self._ratio(scores.by_example[entry.task], entry, reference))
            found.append(_joined(parts).mean())
        return float(np.mean(found))

    def _artefacts(self, entry: MethodEntry) -> tuple[Mapping[str, Any], float]:
        if not entry.needs:
            return {}, 0.0
        found = gather_artefacts(self.bench, entry.needs, examples=self.suite.examples, draws=1)
        return found.aux, found.seconds

    def _reference(self, key: str, domain: Domain, entry: Entry) -> float:
        return self._known(key, entry, lambda: self.bench.experts[domain.expert])

    def _of_base(self, entry: Entry) -> float:
        return self._known("", entry, lambda: self.bench.base)

    def _known(self, key: str, entry: Entry, state: Callable[[], State]) -> float:
        if (key, entry) not in self._references:
            scores = self.bench.family.scores(state(), entry.task, cast("Split", entry.split))
            self._references[key, entry] = float(scores.mean())
        return self._references[key, entry]

    def _ratio(self, scores: Any, entry: Entry, reference: float) -> Any:
        """Return scores over a reference; nan where the reference is no better than nothing (or than chance)."""
        nothing = self.suite.chance.get(entry.task, 0.0) if self.suite.subtract_chance else 0.0
        if reference <= nothing:
            return np.full(len(scores), np.nan)
        return (scores - nothing) / (reference - nothing)


def _joined(parts: Sequence[Any]) -> Any:
    """Return the scores of several tests as one array whose mean is the mean of their means."""
    total = sum(len(part) for part in parts)
    return np.concatenate([part * (total / (len(parts) * len(part))) for part in parts])
