"""The settings of training runs, checked together. The defaults live in the functions that train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from consilience.checkpoints.dtypes import DTYPES, dtype_from_name
from consilience.data.task_batches import SAMPLERS, Sampler
from consilience.errors import Problems, RequestError, did_you_mean

__all__ = [
    "LEARNING_RATES",
    "OBJECTIVES",
    "SIMILARITY_WEIGHTS",
    "CommonSettings",
    "Joint",
    "LanguageSettings",
    "Settings",
]

LEARNING_RATES = {"lora": 5e-4, "full": 2e-5}
OBJECTIVES = ("codiemb", "infonce")
SIMILARITY_WEIGHTS: Mapping[str, float] = {"middle": 1.0, "pearson": 2.0, "preference": 0.5, "rank": 5.0}
"""How much each part counts in the loss on graded pairs."""

_SCHEDULES = ("linear", "constant")


@dataclass(frozen=True)
class CommonSettings:
    """What every run has, besides base and data; see `train_encoder` for the meaning."""

    method: str
    rank: int
    alpha: float
    targets: tuple[str, ...] | None
    steps: int
    batch: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    clip: float
    dropout: bool
    max_tokens: int | None
    seed: int
    dtype: str | None
    checkpoints: tuple[int, ...]

    def check(self) -> None:
        """Raise RequestError with every setting that cannot be."""
        problems = Problems()
        if self.method not in LEARNING_RATES:
            problems.add(f"method {self.method!r} is unknown{did_you_mean(self.method, LEARNING_RATES)}")
        if self.schedule not in _SCHEDULES:
            problems.add(f"schedule {self.schedule!r} is unknown{did_you_mean(self.schedule, _SCHEDULES)}")
        for name, low in self.lowest().items():
            value = getattr(self, name)
            if value is not None and value < low:
                problems.add(f"{name} is {value}; it has to be at least {low}")
        for name in self.positive():
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                problems.add(f"{name} is {value:g}; it has to be above 0")
        if not 0 <= self.warmup <= 1:
            problems.add(f"warmup is {self.warmup:g}; it is a share of the steps, between 0 and 1")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            problems.add(f"weight_decay is {self.weight_decay:g}; it cannot be below 0")
        if self.dtype is not None:
            known = dtype_from_name(self.dtype)
            if known is None or DTYPES[known].kind != "float" or DTYPES[known].itemsize not in (2, 4):
                problems.add(f"dtype {self.dtype!r} cannot be written; use bfloat16, float16 or float32")
        for step in self.checkpoints:
            if not 0 < step <= self.steps:
                problems.add(f"checkpoint {step} is outside the steps 1 to {self.steps}")
        problems.raise_if_any(RequestError, "training settings")

    def lowest(self) -> dict[str, int]:
        """Return the least value of each setting that counts something."""
        return {"rank": 1, "steps": 1, "batch": 1, "max_tokens": 2}

    def positive(self) -> tuple[str, ...]:
        """Return the settings that have to be above 0."""
        return ("alpha", "learning_rate", "clip")


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Everything that decides what `train_encoder` makes."""

    scale: float
    dev_queries: int
    dev_documents: int

    def lowest(self) -> dict[str, int]:
        """Return the least value of each setting that counts something."""
        return {"rank": 1, "steps": 1, "batch": 2, "max_tokens": 3, "dev_queries": 0, "dev_documents": 0}

    def positive(self) -> tuple[str, ...]:
        """Return the settings that have to be above 0."""
        return ("alpha", "learning_rate", "clip", "scale")


@dataclass(frozen=True)
class LanguageSettings(CommonSettings):
    """Everything that decides what `train_language_model` makes."""

    dev_examples: int

    def lowest(self) -> dict[str, int]:
        """Return the least value of each setting that counts something."""
        return {**super().lowest(), "dev_examples": 0}


@dataclass(frozen=True)
class Joint:
    """How `train_encoder` learns from several datasets together: retrieval, and pairs with a graded similarity.

    >>> Joint(objective="infonce", sampler="mixed").check()

    objective: "codiemb" gives each task the loss of its metric, InfoNCE over grouped positives and hard negatives for
    retrieval and `similarity_loss` for graded pairs; "infonce" is the baseline that takes alike pairs as positives.
    sampler: see `TaskBatches`; "mixed" has no place for losses of one task, so it goes with "infonce" only.
    positives, negatives: per query, of retrieval; missing negatives are filled up with other documents.
    similarity_batch: pairs per step of graded datasets (None: the same as `batch`). temperature: of InfoNCE;
    rank_temperature: of the rank and preference losses; weights: of the parts of `similarity_loss`. alike: the least
    score, 0 to 1, of pairs that mean the same. Source of the defaults: CoDiEmb, 2025 (positives and negatives there: 2
    and 4, where the data has that many).
    """

    objective: str = "codiemb"
    sampler: Sampler = "dynamic"
    positives: int = 1
    negatives: int = 0
    similarity_batch: int | None = None
    temperature: float = 0.02
    rank_temperature: float = 0.05
    weights: Mapping[str, float] = field(default_factory=lambda: dict(SIMILARITY_WEIGHTS))
    alike: float = 1.0

    def check(self) -> None:
        """Raise RequestError with every setting that cannot be."""
        problems = Problems()
        if self.objective not in OBJECTIVES:
            problems.add(f"objective {self.objective!r} is unknown{did_you_mean(self.objective, OBJECTIVES)}")
        if self.sampler not in SAMPLERS:
            problems.add(f"sampler {self.sampler!r} is unknown{did_you_mean(self.sampler, SAMPLERS)}")
        if self.sampler == "mixed" and self.objective == "codiemb":
            problems.add("sampler 'mixed' puts two tasks into a batch, where codiemb's losses are of one; use infonce")
        for name, low in {"positives": 1, "negatives": 0, "similarity_batch": 2}.items():
            value = getattr(self, name)
            if value is not None and value < low:
                problems.add(f"{name} is {value}; it has to be at least {low}")
        for name in ("temperature", "rank_temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                problems.add(f"{name} is {value:g}; it has to be above 0")
        if set(self.weights) != set(SIMILARITY_WEIGHTS):
            wanted = ", ".join(SIMILARITY_WEIGHTS)
            problems.add(f"weights are of {', '.join(self.weights) or 'nothing'}; they are of {wanted}")
        for name, value in self.weights.items():
            if not (math.isfinite(value) and value >= 0):
                problems.add(f"the weight of {name} is {value:g}; it cannot be below 0")
        if not 0 <= self.alike <= 1:
            problems.add(f"alike is {self.alike:g}; scores are between 0 and 1")
        problems.raise_if_any(RequestError, "joint training settings")
