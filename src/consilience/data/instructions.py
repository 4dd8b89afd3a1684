"""Text-to-text tasks with instructions: instances in splits that do not leak, and the scores of answers to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consilience.core.hashing import fingerprint
from consilience.core.randomness import stream_key, uniform_bits
from consilience.data.layout import SPLITS
from consilience.data.rendering import Instruction
from consilience.data.reserved import ReservedQueries
from consilience.data.text import query_key
from consilience.data.text_metrics import TEXT_METRICS, normalise, score_answer
from consilience.errors import DataError, LeakageError, Problems, did_you_mean

__all__ = ["AnswerScores", "InstructionData", "InstructionTask", "TaskInstance", "TrainingInstances"]


@dataclass(frozen=True)
class TaskInstance:
    """One thing to answer: its text, the right answers (the first is trained on), and the question about the text.

    The question stands before the text in what a model reads and is never cut; the text may be, at its end.
    """

    input: str
    outputs: tuple[str, ...]
    question: str = ""

    @property
    def text(self) -> str:
        """Question and input together."""
        return f"{self.question} {self.input}" if self.question else self.input


@dataclass(frozen=True)
class AnswerScores:
    """Scores of answers to a task's instances, 0 to 1, and how many were empty or outside the task's labels."""

    task: str
    metric: str
    scores: NDArray[np.float64] = field(repr=False)
    empty: int
    unparsed: int

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(self.scores.mean())


@dataclass(frozen=True)
class InstructionTask:
    """A task: its name, its instruction, its instances by split, its metric, and its labels where it has them.

    >>> alive = InstructionTask("alive", Instruction("Is it alive?"), {"test": [TaskInstance("a dog", ("yes",))]})
    >>> alive.score(["Yes."]).mean
    1.0
    """

    name: str
    instruction: Instruction
    splits: Mapping[str, Sequence[TaskInstance]] = field(repr=False)
    metric: str = "rouge_l"
    labels: tuple[str, ...] = ()

    def instances(self, split: str) -> Sequence[TaskInstance]:
        """Return the instances of a split. Raises DataError when it has none."""
        if not self.splits.get(split):
            held = ", ".join(name for name, found in self.splits.items() if found)
            raise DataError(f"task {self.name}: no instances of {split!r}; it has {held or 'none'}")
        return self.splits[split]

    def first(self, split: str, limit: int) -> InstructionTask:
        """Return the task with the first `limit` instances of a split."""
        return replace(self, splits={**self.splits, split: self.instances(split)[:limit]})

    def score(self, answers: Sequence[str], *, split: str = "test") -> AnswerScores:
        """Return the scores of answers to the instances of a split, in their order.

        An empty answer scores 0. An answer that is none of the labels is scored as it is and counted as unparsed.
        """
        wanted = self.instances(split)
        if len(answers) != len(wanted):
            raise DataError(f"task {self.name}: {len(answers)} answers to {len(wanted)} instances of {split!r}")
        scores = [score_answer(self.metric, answer, one.outputs) for answer, one in zip(answers, wanted, strict=True)]
        known = {normalise(label) for label in self.labels}
        empty = sum(not answer.strip() for answer in answers)
        strange = sum(bool(answer.strip()) and normalise(answer) not in known for answer in answers) if known else 0
        return AnswerScores(self.name, self.metric, np.array(scores), empty, strange)


@dataclass(frozen=True)
class TrainingInstances:
    """What a model may be fitted on: instances by task, what was dropped by reason, what it was checked against."""

    instances: Mapping[str, tuple[TaskInstance, ...]] = field(repr=False)
    dropped: Mapping[str, int]
    sources: Mapping[str, str]

    def __len__(self) -> int:
        return sum(len(found) for found in self.instances.values())

    def few(self, limit: int | None, *, seed: int = 0) -> TrainingInstances:
        """Return at most `limit` instances of every task, drawn by (seed, task), in their order; None is all."""
        if limit is not None and limit < 1:
            raise DataError(f"{limit} instances per task were asked for; use 1 or more, or None for all")
        kept = {}
        for task, found in self.instances.items():
            draws = uniform_bits(stream_key(seed, "few instances", task), 0, len(found))
            kept[task] = tuple(found[place] for place in sorted(np.argsort(draws, kind="stable")[:limit].tolist()))
        return TrainingInstances(kept, self.dropped, self.sources)

    def describe(self) -> dict[str, object]:
        """Return the facts for a record: counts, what was dropped and checked, the hash."""
        content = {task: [[one.text, list(one.outputs)] for one in found] for task, found in self.instances.items()}
        return {
            "instances": {task: len(found) for task, found in self.instances.items()},
            "dropped": dict(self.dropped),
            "checked_against": dict(self.sources),
            "content_hash": fingerprint([content, dict(self.sources)]),
        }


@dataclass(frozen=True)
class InstructionData:
    """Several tasks, each with an instruction of its own.

    >>> parity = InstructionTask(
    ...     "parity",
    ...     Instruction("Is the number even?"),
    ...     {"train": [TaskInstance("2", ("yes",)), TaskInstance("3", ("no",))], "test": [TaskInstance("3", ("no",))]},
    ...     metric="exact",
    ... )
    >>> data = InstructionData.of("numbers", [parity])
    >>> data.training().dropped["same as a dev or test instance"]
    1

    Two instances are the same when question and input are, apart from case, white space and final punctuation.
    """

    name: str
    tasks: Mapping[str, InstructionTask] = field(repr=False)
    folder: Path | None = None

    @staticmethod
    def of(name: str, tasks: Iterable[InstructionTask], *, folder: Path | None = None) -> InstructionData:
        """Make data of tasks at hand.

        Raises DataError with every problem: no tasks, names that repeat, unknown metrics and splits, instances without
        text or answers; LeakageError when a demonstration is a dev or test instance of its task.
        """
        listed = list(tasks)
        problems, leaks = Problems(), Problems()
        if not listed:
            problems.add("there are no tasks")
        for task in listed:
            if sum(other.name == task.name for other in listed) > 1:
                problems.add(f"several tasks are named {task.name!r}")
            _check(task, problems, leaks)
        problems.raise_if_any(DataError, name)
        leaks.raise_if_any(LeakageError, name)
        return InstructionData(name, {task.name: task for task in listed}, folder)

    @staticmethod
    def open(folder: str | Path) -> InstructionData:
        """Read a folder with `instructions.json` and, per task, `TASK/train.jsonl`, `dev.jsonl`, `test.jsonl`.

        `instructions.json` maps a task to {"Definition", "Prompt", "Examples": [{"input", "output", "explanation"}]},
        as the BoX collection's does, and optionally "Metric" and "Labels". A line of a split is {"input": ...,
        "output": one answer or several} with an optional "question". Tasks without a folder are left out. Raises
        DataError with everything that is wrong, by file and line; see `of` for the rest.
        """
        from consilience.data.instruction_files import read_tasks

        folder = Path(folder)
        return InstructionData.of(folder.resolve().name, read_tasks(folder), folder=folder)

    def only(self, *names: str) -> InstructionData:
        """Return some of the tasks. Raises DataError for an unknown one."""
        for name in names:
            if name not in self.tasks:
                raise DataError(f"{self.name}: no task {name!r}{did_you_mean(name, self.tasks)}")
        return InstructionData(self.name, {name: self.tasks[name] for name in names}, self.folder)

    @cached_property
    def content_hash(self) -> str:
        """The identity of all instructions and instances, for records."""
        content = {
            name: [
                [task.instruction.definition, task.instruction.prompt, task.metric, list(task.labels)],
                [[one.input, one.output, one.explanation] for one in task.instruction.examples],
                {split: [[one.text, list(one.outputs)] for one in found] for split, found in task.splits.items()},
            ]
            for name, task in self.tasks.items()
        }
        return fingerprint(content)

    def training(
        self,
        *,
        against: Iterable[InstructionData] = (),
        reserved: ReservedQueries | None = None,
        on_leak: Literal["drop", "refuse"] = "drop",
    ) -> TrainingInstances:
        """Return the train instances of all tasks without those that are held out, by any task, or reserved.

        Raises LeakageError for such instances with `on_leak="refuse"`, DataError when a task has none left.
        """
        reserved = ReservedQueries.find() if reserved is None else reserved
        others = {id(other): other for other in (self, *against)}.values()
        held_out = {
            query_key(one.text)
            for other in others
            for task in other.tasks.values()
            for split in ("dev", "test")
            for one in task.splits.get(split, ())
        }
        dropped = {"same as a dev or test instance": 0, "reserved": 0}
        kept: dict[str, tuple[TaskInstance, ...]] = {}
        for name, task in self.tasks.items():
            found = []
            for one in task.instances("train"):
                same = query_key(one.text) in held_out
                if not same and one.text not in reserved:
                    found.append(one)
                    continue
                reason = "same as a dev or test instance" if same else "reserved"
                if on_leak == "refuse":
                    raise LeakageError(f"task {name}: the training text {one.text[:80]!r} is held out ({reason})")
                dropped[reason] += 1
            if not found:
                raise DataError(f"task {name}: none of its training instances is left ({dropped})")
            kept[name] = tuple(found)
        sources = {other.name: other.content_hash for other in others}
        if len(reserved):
            sources["reserved queries"] = reserved.content_hash
        return TrainingInstances(kept, dropped, sources)


def _check(task: InstructionTask, problems: Problems, leaks: Problems) -> None:
    if task.metric not in TEXT_METRICS:
        problems.add(f"task {task.name}: metric {task.metric!r} is unknown{did_you_mean(task.metric, TEXT_METRICS)}")
    shown = {query_key(one.input) for one in task.instruction.examples}
    for split, found in task.splits.items():
        if split not in SPLITS:
            problems.add(f"task {task.name}: split {split!r} is unknown{did_you_mean(split, SPLITS)}")
        for place, one in enumerate(found):
            if not one.text.strip() or not one.outputs or not all(answer.strip() for answer in one.outputs):
                problems.add(f"task {task.name}: {split} instance {place} has an empty text, no answer or an empty one")
            if split in ("dev", "test") and (query_key(one.text) in shown or query_key(one.input) in shown):
                leaks.add(f"task {task.name}: {split} instance {place} is one of the instruction's examples")
