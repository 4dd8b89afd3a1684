"""What a kind of residual offers: how residuals are written, and the expert's tensors that follow from them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from consilience.bundles.weights import Given
from consilience.checkpoints.model import Checkpoint
from consilience.core.jobs import Job
from consilience.errors import Problems, RecipeError, did_you_mean

__all__ = ["KINDS", "Creation", "Residual", "make_residual", "residual_kind"]

KINDS = ("adapter", "emr", "low_rank", "masks", "sparse")


@dataclass(frozen=True)
class Creation:
    """A bundle being made: `folder` becomes the bundle, `shared` is the model in it that all experts share.

    `experts` are in the order of their names.
    """

    job: Job
    folder: Path
    base: Given
    shared: Checkpoint
    experts: Mapping[str, Given]


class Residual(Protocol):
    """A kind of residual, with its settings."""

    kind: ClassVar[str]
    shares_base: ClassVar[bool]
    """Whether the shared weights have to be those of the base."""

    def settings(self) -> dict[str, Any]:
        """Return what decides the residuals, as plain data."""
        ...

    def check(self, base: Given, experts: Mapping[str, Given], problems: Problems) -> None:
        """Report everything that does not fit; no weights are read."""
        ...

    def write(self, creation: Creation) -> dict[str, Any]:
        """Write the residuals of all experts below the folder and return what the record is to say of them.

        The record's `files` maps each expert to the files that are its own, as relative paths.
        """
        ...

    @staticmethod
    def open(folder: Path, record: Mapping[str, Any], expert: str, shared: Checkpoint) -> Checkpoint:
        """Return an expert; its tensors are computed when they are read, in any cut with the same bits."""
        ...


def residual_kind(kind: str) -> type[Residual]:
    """Return the class of a kind. Raises RecipeError for an unknown one."""
    if kind not in KINDS:
        raise RecipeError(f"residual {kind!r} is unknown{did_you_mean(kind, KINDS)}; there are {', '.join(KINDS)}")
    found: type[Residual] = import_module(f"consilience.bundles.residuals.{kind}").KIND
    return found


def make_residual(kind: str, options: Mapping[str, Any]) -> Residual:
    """Return a residual with its options.

    >>> make_residual("low_rank", {"rank": 8}).settings()["rank"]
    8

    Raises RecipeError for an unknown kind, an option it does not have, or a value out of range.
    """
    made = residual_kind(kind)
    known = list(inspect.signature(made).parameters)
    unknown = [f"{name!r}{did_you_mean(name, known)}" for name in options if name not in known]
    if unknown:
        raise RecipeError(f"residual {kind}: no option {', '.join(unknown)}; there are {', '.join(known) or 'none'}")
    return made(**options)
