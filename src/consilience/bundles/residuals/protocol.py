"""What a kind of residual offers: how residuals are written, and the expert's tensors that follow from them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from consilience.bundles.weights import Given
from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.sources import Source, Stored
from consilience.core.jobs import Job
from consilience.errors import Problems, RecipeError, did_you_mean

__all__ = ["KINDS", "OTHER_SHAPES", "Computed", "Creation", "Residual", "make_residual", "residual_kind"]

KINDS = ("adapter", "emr", "low_rank", "masks", "sparse", "widths")
OTHER_SHAPES = ("widths",)
"""The kinds whose experts may have other tensors and shapes than the base; they cannot be mixed."""


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
        """Report everything that does not fit; weights are read only where it is asked to compare them."""
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


@dataclass(frozen=True, eq=False)
class Computed:
    """What is alike in tensors that are computed from a shared one when they are read: its type and its shape."""

    base: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""
        return tuple(self.base.shape)

    @property
    def dtype(self) -> str:
        """Number type."""
        return self.base.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes when stored."""
        return self.numel * DTYPES[self.dtype].itemsize

    def inputs(self) -> tuple[Stored, ...]:
        """Return the ranges of files behind the shared one."""
        return self.base.inputs()


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
