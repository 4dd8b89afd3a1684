"""The learners by name: what each needs, its options from its own signature, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from consilience.errors import Problems, did_you_mean
from consilience.tuning.adamerging import adamerging
from consilience.tuning.atlas import atlas
from consilience.tuning.atlas_adaptation import atlas_adaptation
from consilience.tuning.evolution import evolution
from consilience.tuning.expert_merging import chunk_counts, expert_merging, importance
from consilience.tuning.frank_wolfe import frank_wolfe
from consilience.tuning.self_positioning import self_positioning

if TYPE_CHECKING:
    from consilience.core.jobs import Job

__all__ = ["LEARNERS", "Learner"]

_GIVEN = ("job", "seed", "validation")
_PIECES = 1.2  # coefficients of the second round, times the number of tensors


@dataclass(frozen=True)
class Learner:
    """A learner as `tune` calls it.

    labels: whether the answers in examples are looked at. kinds: models it works with: "classifier", "retrieval" or
    "causal". fixed: options that the name stands for. encoders: defaults for "retrieval" models, whose outcomes are the
    documents of a batch, so that a batch needs several.
    """

    function: Callable[..., Any]
    labels: bool
    kinds: tuple[str, ...]
    does: str
    fixed: Mapping[str, Any]
    call: Callable[..., Any] | None = None
    encoders: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def options(self) -> dict[str, Any]:
        """Option -> default, as in the signature, less those that the name stands for."""
        found = inspect.signature(self.function).parameters.values()
        return {
            p.name: p.default
            for p in found
            if p.kind is p.KEYWORD_ONLY and p.name not in _GIVEN and p.name not in self.fixed
        }

    def check(self, options: Mapping[str, Any]) -> list[str]:
        """Return the problems of options: unknown names, and values of another kind than the default."""
        problems = Problems()
        for name, value in options.items():
            if name not in self.options:
                problems.add(f"option {name!r} is unknown{did_you_mean(name, self.options)}")
                continue
            default = self.options[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(type(default))
            fits = {
                bool: isinstance(value, bool),
                int: number and float(value).is_integer(),
                float: number,
                str: isinstance(value, str),
            }.get(type(default), True)
            if not fits and not (value is None and name in ("tolerance", "clip")):
                problems.add(f"option {name}: {value!r} is not {wanted} (the default is {default!r})")
        return problems.found

    def run(
        self,
        base: Mapping[str, Any],
        experts: Mapping[str, Any],
        models: Mapping[str, Any],
        examples: Mapping[str, Sequence[Any]],
        *,
        seed: int,
        job: Job | None = None,
        options: Mapping[str, Any],
        kinds: Collection[str] = (),
    ) -> Any:
        """Learn; returns what the learner returns: it has `recipe(base=, experts=)`, `trace` and `notices`."""
        own = self.encoders if "retrieval" in kinds else {}
        given = {**self.fixed, **own, **options, "job": job}
        if "seed" in inspect.signature(self.function).parameters:
            given["seed"] = seed
        return (self.call or self.function)(base, experts, models, examples, **given)


def _chunked(base: Any, experts: Any, models: Any, examples: Any, *, job: Job | None, **options: Any) -> Any:
    """Expert Merging ++: learn, cut important tensors into pieces, learn again."""
    options.pop("pieces", None)
    first = expert_merging(base, experts, models, examples, job=_part(job, "first"), **options)
    pieces = chunk_counts(importance(first), round(_PIECES * len(first.composition.tensors)))
    return expert_merging(base, experts, models, examples, pieces=pieces, job=_part(job, "second"), **options)


def _part(job: Job | None, name: str) -> Any:
    return None if job is None else _Part(job, name)


class _Part:
    """One of several rounds in a job's journal: its keys have a beginning of their own."""

    def __init__(self, job: Job, name: str) -> None:
        self._job, self._name, self.partial = job, name, job.partial
        self.done = {key[len(name) + 2 :]: value for key, value in job.done.items() if key.startswith(f"{name}: ")}

    def check(self) -> None:
        """Stop where the job is to stop."""
        self._job.check()

    def record(self, key: str, **facts: Any) -> None:
        """Write a line of the journal."""
        self._job.record(f"{self._name}: {key}", **facts)
        self.done[key] = facts


_ALL = ("classifier", "retrieval", "causal")
_BATCHED = ("classifier", "retrieval")
_IMITATED = {"batch": 16, "start": 0.3}

LEARNERS: Mapping[str, Learner] = {
    "adamerging": Learner(
        adamerging, False, _ALL, "lowest entropy of predictions, guarded by the experts' agreement", {}
    ),
    "adamerging++": Learner(adamerging, False, _ALL, "the same on TIES-filtered task vectors", {"vectors": "ties"}),
    "expert-merging": Learner(
        expert_merging, False, _ALL, "imitates every expert on a few inputs", {}, encoders=_IMITATED
    ),
    "expert-merging++": Learner(
        expert_merging,
        False,
        _ALL,
        "the same, then again with important tensors in pieces",
        {"pieces": None},
        _chunked,
        _IMITATED,
    ),
    "atlas": Learner(atlas, True, _BATCHED, "lowest loss, a coefficient per expert and tensor", {}),
    "atlas-adaptation": Learner(
        atlas_adaptation, False, ("classifier",), "the same from the model's own sure predictions, without labels", {}
    ),
    "frank-wolfe": Learner(
        frank_wolfe, True, _ALL, "picks experts by the gradient of the loss, step by step", {"variant": "hard"}
    ),
    "frank-wolfe-soft": Learner(
        frank_wolfe, True, _ALL, "picks an expert per task and tensor, learns their shares", {"variant": "soft"}
    ),
    "self-positioning": Learner(
        self_positioning, True, ("retrieval",), "direction and norm of the merged task vector of encoders", {}
    ),
    "evolution": Learner(evolution, True, _ALL, "CMA-ES on the loss: the baseline", {}),
}
"""Name of `consilience tune --method` -> learner."""
