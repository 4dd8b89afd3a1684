"""The settings of training runs, checked together. The defaults live in the functions that train."""

from __future__ import annotations

import math
from dataclasses import dataclass

from consilience.checkpoints.dtypes import DTYPES, dtype_from_name
from consilience.errors import Problems, RequestError, did_you_mean

__all__ = ["LEARNING_RATES", "CommonSettings", "LanguageSettings", "Settings"]

LEARNING_RATES = {"lora": 5e-4, "full": 2e-5}
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
