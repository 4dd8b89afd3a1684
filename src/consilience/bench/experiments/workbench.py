"""A workbench: one family of models, one seed; experts trained once, merged, tuned on dev and measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from consilience.bench.experiments.family import Family, Split, State
from consilience.bench.experiments.scores import Scores
from consilience.bench.experiments.store import load_or_make
from consilience.bench.experiments.tune import Tuned, Tuning, grid_points, local_search
from consilience.core.hashing import fingerprint
from consilience.errors import LeakageError, RequestError, did_you_mean
from consilience.merging.memory import merge_state_dicts

__all__ = ["CACHE", "Workbench"]

CACHE = Path("build/experiments")


class Workbench:
    """Base and experts of a family for one seed, and what can be done with them.

    family: see `Family`. cache: where trained states are kept, under the family's name and a fingerprint of its
    settings (default build/experiments); a second run loads them. tasks: those that take part (all of the family's).

    `base` and `experts` are made when they are first asked for. Merges run `merge_state_dicts`, the same code as the
    streaming engine. Nothing is tuned on test: that is a LeakageError.
    """

    def __init__(
        self,
        family: Family,
        *,
        seed: int = 0,
        cache: str | Path | None = None,
        tasks: Sequence[str] | None = None,
    ) -> None:
        self.family, self.seed = family, seed
        self.tasks = tuple(family.tasks if tasks is None else tasks)
        self._check(self.tasks)
        self.settings = dict(family.settings)
        self.folder = Path(CACHE if cache is None else cache) / family.name / fingerprint(self.settings)
        self._measured: dict[tuple[str, str, Split], Any] = {}

    def __repr__(self) -> str:
        return f"Workbench({self.family.name}, seed={self.seed}, tasks={', '.join(self.tasks)})"

    @cached_property
    def base(self) -> State:
        """The state that all experts start from."""
        return self._kept("base", (), lambda: self.family.base(self.seed))

    @cached_property
    def experts(self) -> dict[str, State]:
        """Task -> fine-tuned state."""
        return {task: self._expert(task) for task in self.tasks}

    def _expert(self, task: str) -> State:
        return self._kept("expert", (task,), lambda: self.family.expert(task, self.seed))

    def multitask(self, tasks: Sequence[str] | None = None) -> State:
        """Return the state fine-tuned on several tasks together (all of the workbench's)."""
        chosen = self.tasks if tasks is None else tuple(tasks)
        self._check(chosen)
        return self._kept("multitask", chosen, lambda: self.family.multitask(chosen, self.seed))

    def _kept(self, kind: str, tasks: tuple[str, ...], make: Callable[[], State]) -> State:
        label = "-".join((kind, *(tasks if len(tasks) < 2 else (fingerprint(tasks),))))
        request = {
            "family": self.family.name,
            "kind": kind,
            "tasks": list(tasks),
            "seed": self.seed,
            "settings": self.settings,
        }

        def make_and_tell() -> State:
            started = time.perf_counter()
            state = make()
            what = f"{self.family.name}, seed {self.seed}: {kind} {', '.join(tasks)}".rstrip()
            print(f"{what} made in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
            return state

        return load_or_make(self.folder / f"seed-{self.seed}" / label, request, make_and_tell)

    def merge(self, method: str, *, tasks: Sequence[str] | None = None, **parameters: Any) -> State:
        """Merge the experts of some tasks (all) by a method; parameters, `aux`, `masks`, ... as `merge_state_dicts`.

        Methods that draw at random use the workbench's seed unless one is given.
        """
        chosen = self.tasks if tasks is None else tuple(tasks)
        experts = {task: self.experts[task] for task in chosen}
        return merge_state_dicts(method, self.base, experts, **{"seed": self.seed, **parameters})

    def task_vectors(self) -> dict[str, State]:
        """Task -> expert minus base, floating-point tensors only."""
        return {
            task: {name: value - self.base[name] for name, value in state.items() if value.is_floating_point()}
            for task, state in self.experts.items()
        }

    def shifted(self, vector: Mapping[str, Any], scale: float = 1.0) -> State:
        """Return the base plus scale times a vector; tensors that the vector lacks stay the base's."""
        return {
            name: value + scale * vector[name].to(value.dtype) if name in vector else value
            for name, value in self.base.items()
        }

    def scores(self, state: State, *, split: Split = "test", tasks: Sequence[str] | None = None) -> Scores:
        """Measure a state on tasks (all of the workbench's)."""
        chosen = self.tasks if tasks is None else tuple(tasks)
        return Scores({task: self.family.scores(state, task, split) for task in chosen})

    def base_scores(self, *, split: Split = "test", tasks: Sequence[str] | None = None) -> Scores:
        """Measure the base, once per task and split; tasks may be others of the family, without an expert here."""
        return self._once("base", lambda task: self.base, split, tasks)

    def expert_scores(self, *, split: Split = "test", tasks: Sequence[str] | None = None) -> Scores:
        """Measure every expert on its own task, once."""
        return self._once("expert", lambda task: self.experts[task], split, tasks)

    def _once(self, kind: str, state: Callable[[str], State], split: Split, tasks: Sequence[str] | None) -> Scores:
        found = {}
        for task in self.tasks if tasks is None else tasks:
            key = (kind, task, split)
            if key not in self._measured:
                self._measured[key] = self.family.scores(state(task), task, split)
            found[task] = self._measured[key]
        return Scores(found)

    def normalised(self, scores: Scores, *, split: Split = "test") -> dict[str, float]:
        """Return, per task, the score over that of the task's own expert; nan where the expert scores 0."""
        own = self.expert_scores(split=split, tasks=list(scores.by_example)).by_task
        return {task: value / own[task] if own[task] else float("nan") for task, value in scores.by_task.items()}

    def relative(self, scores: Scores, *, split: Split = "test") -> Scores:
        """Return every score over the mean of the task's own expert: the means are the normalised scores."""
        own = self.expert_scores(split=split, tasks=list(scores.by_example)).by_task
        return Scores({task: values / own[task] for task, values in scores.by_example.items()})

    def tune(
        self,
        method: str | Callable[..., State],
        grid: Mapping[str, Sequence[Any]],
        *,
        split: Split = "dev",
        tasks: Sequence[str] | None = None,
        on: Sequence[str] | None = None,
        objective: Callable[[Scores], float] | None = None,
        **fixed: Any,
    ) -> Tuned:
        """Try every combination of a grid, in order; the first of the highest mean dev scores is kept.

        method: a method's name, or a function of the grid's parameters that returns a state. tasks: the experts that
        are merged (all). on: the tasks that are measured (those that are merged). objective: another number to
        maximise than the mean over tasks.
        Every trial counts: `Tuned.trials`. Raises LeakageError for the test split.
        """
        tuning = self._tuning(method, split, tasks, on, objective, fixed)
        for point in grid_points(grid):
            tuning.attempt(point)
        return tuning.result()

    def search(
        self,
        method: str | Callable[..., State],
        parameter: str,
        start: Mapping[str, float],
        *,
        low: float,
        high: float,
        budget: int,
        split: Split = "dev",
        objective: Callable[[Scores], float] | None = None,
        **fixed: Any,
    ) -> Tuned:
        """Search a per-expert parameter (task -> value) from `start` within [low, high] by `budget` evaluations.

        The first evaluation is the start itself, so the result never scores below it. See `tune.local_search`.
        """
        tuning = self._tuning(method, split, list(start), None, objective, fixed)

        def attempt(values: Sequence[float]) -> float:
            return tuning.attempt({parameter: dict(zip(start, values, strict=True))})

        local_search(attempt, list(start.values()), low=low, high=high, budget=budget, seed=self.seed)
        return tuning.result()

    def _tuning(
        self,
        method: str | Callable[..., State],
        split: Split,
        tasks: Sequence[str] | None,
        on: Sequence[str] | None,
        objective: Callable[[Scores], float] | None,
        fixed: Mapping[str, Any],
    ) -> Tuning:
        if split == "test":
            raise LeakageError("parameters are chosen on dev; the test split is for measuring only")

        def make(**point: Any) -> State:
            if callable(method):
                return method(**fixed, **point)
            return self.merge(method, tasks=tasks, **fixed, **point)

        def score(state: State) -> float:
            scores = self.scores(state, split=split, tasks=tasks if on is None else on)
            return scores.mean if objective is None else objective(scores)

        return Tuning(make, score)

    def _check(self, tasks: Sequence[str]) -> None:
        unknown = [
            f"{task!r}{did_you_mean(task, self.family.tasks)}" for task in tasks if task not in self.family.tasks
        ]
        if unknown or not tasks or len(set(tasks)) < len(tasks):
            raise RequestError(
                f"{self.family.name}: unknown tasks {', '.join(unknown) or 'none'} in {list(tasks)}; "
                f"give some of {', '.join(self.family.tasks)}, each once"
            )
