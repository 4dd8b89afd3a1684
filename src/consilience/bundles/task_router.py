"""The task router: which expert answers a call that a model made, and why a call is turned down.

Source: UnifiedMLLM, 2024 (arXiv 2408.02503): a router reads task tokens and calls the expert; no code was published.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from consilience.bundles.task_calls import TaskCall
from consilience.errors import Problems, RequestError

__all__ = ["Region", "TaskExpert", "TaskRoute", "TaskRouter", "Unknown"]

Region = Literal["none", "box", "boxes"]
Unknown = Literal["error", "text", "nearest"]

_REGIONS = {"none": (0, 0), "box": (1, 1), "boxes": (1, None)}


@dataclass(frozen=True)
class TaskExpert:
    """What an expert can do: the task it answers, the modalities it takes, the regions it needs, what it gives.

    region: "none", "box" (exactly one) or "boxes" (one or more). name: of the model behind it, such as an expert of a
    bundle; the task's name where it is empty.
    """

    task: str
    accepts: Collection[str] = ("text",)
    region: Region = "none"
    gives: str = "text"
    name: str = ""


@dataclass(frozen=True)
class TaskRoute:
    """Where a call goes: `expert`, or None with the `reason`. `score`: 1 for a known name, below for a similar one."""

    call: TaskCall
    expert: TaskExpert | None
    reason: str = ""
    score: float = 1.0
    as_text: bool = field(default=False)


class TaskRouter:
    """Finds the expert of a call by the task's name.

    >>> router = TaskRouter([TaskExpert("segment", ["image"], "box", "mask")], aliases={"seg": "segment"})
    >>> from consilience.bundles.task_calls import Ground
    >>> router.route(TaskCall("seg", (Ground((0.1, 0.1, 0.5, 0.5)),)), ["image"]).expert.task
    'segment'
    >>> router.route(TaskCall("seg"), ["image"]).reason
    "task 'segment' needs exactly one region; the call has 0"

    aliases: other (and older) names of tasks. unknown: what becomes of a name that nobody has: "error" turns the call
    down, "text" keeps it as text, "nearest" takes the most similar name with a similarity of `least` or more (0 to 1,
    the share of matching characters), else turns it down. Calls are only ever made of what `parse_reply` accepted.

    Raises RequestError for tasks that are registered twice and aliases that lead nowhere.
    """

    def __init__(
        self,
        experts: Iterable[TaskExpert],
        *,
        aliases: Mapping[str, str] | None = None,
        unknown: Unknown = "error",
        least: float = 0.75,
    ) -> None:
        given = list(experts)
        self.experts = {expert.task: expert for expert in given}
        self.aliases, self.unknown, self.least = dict(aliases or {}), unknown, least
        problems = Problems()
        if len(self.experts) < len(given):
            names = sorted({e.task for e in given if sum(o.task == e.task for o in given) > 1})
            problems.add(f"tasks {names} have several experts; a task has one")
        if unknown not in ("error", "text", "nearest") or not 0 < least <= 1:
            problems.add(f"unknown {unknown!r} is error, text or nearest; least {least} is above 0 and at most 1")
        for alias, task in self.aliases.items():
            if task not in self.experts:
                problems.add(f"alias {alias!r} leads to {task!r}, which has no expert")
            if alias in self.experts:
                problems.add(f"alias {alias!r} is the name of a task")
        problems.extend(
            f"task {one.task!r}: region {one.region!r} is none, box or boxes"
            for one in given
            if one.region not in _REGIONS
        )
        problems.raise_if_any(RequestError, "task router")

    def with_expert(self, expert: TaskExpert) -> TaskRouter:
        """Return a router that knows one more expert; the others stay as they are."""
        return TaskRouter(
            [*self.experts.values(), expert], aliases=self.aliases, unknown=self.unknown, least=self.least
        )

    def route(self, call: TaskCall, has: Collection[str] = ("text",)) -> TaskRoute:
        """Return the expert of a call. has: modalities of the conversation, "text", "image", "audio", ..."""
        task, score = self._task(call.name)
        if task is None:
            reason = f"no expert for task {call.name!r}; there are {', '.join(self.experts) or 'none'}"
            return TaskRoute(call, None, reason, score, self.unknown == "text")
        expert = self.experts[task]
        missing = [kind for kind in expert.accepts if kind not in has]
        if missing:
            return TaskRoute(call, None, f"task {task!r} needs {', '.join(missing)}, which is not there", score)
        low, high = _REGIONS[expert.region]
        count = len(call.regions)
        if count < low or (high is not None and count > high):
            wanted = {"none": "no region", "box": "exactly one region", "boxes": "one region or more"}[expert.region]
            return TaskRoute(call, None, f"task {task!r} needs {wanted}; the call has {count}", score)
        return TaskRoute(call, expert, "", score)

    def _task(self, name: str) -> tuple[str | None, float]:
        if name in self.experts:
            return name, 1.0
        if name in self.aliases:
            return self.aliases[name], 1.0
        known = [*self.experts, *self.aliases]
        scores = {other: difflib.SequenceMatcher(None, name, other).ratio() for other in known}
        best = max(scores, key=scores.__getitem__, default=None)
        if self.unknown != "nearest" or best is None or scores[best] < self.least:
            return None, 0.0 if best is None else scores[best]
        return self.aliases.get(best, best), scores[best]
