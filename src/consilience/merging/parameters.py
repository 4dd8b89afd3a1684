"""Parameters of a merge as written: scalars, gradients over layers, filters over names, in levels of precedence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["MISSING", "Filters", "Form", "Gradient", "Level", "ParameterTable", "matches"]


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


@dataclass(frozen=True, slots=True)
class Gradient:
    """A list over the layers of one slice: interpolated for numbers, the element at int(t * k) otherwise."""

    values: tuple[Any, ...]

    def at(self, position: float) -> Any:
        """Return the value at `position` in [0, 1].

        >>> Gradient((0.0, 1.0, 0.5)).at(0.25)
        0.5
        """
        place = position * (len(self.values) - 1)
        left = min(int(place), len(self.values) - 1)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)
        if not numbers or left == len(self.values) - 1:
            return self.values[left]
        share = place - left
        return (1.0 - share) * self.values[left] + share * self.values[left + 1]


@dataclass(frozen=True, slots=True)
class Filters:
    """(filter, form) pairs tried in order; the first filter that matches the tensor's name wins."""

    entries: tuple[tuple[str | None, Any], ...]


Form = Any  # a scalar, a Gradient or Filters


def matches(pattern: str | None, name: str) -> bool:
    """Whether a filter matches a tensor name: a glob where it has `*`, `?` or `[`, else a plain substring.

    >>> matches("encoder.*.bias", "encoder.layer.0.bias"), matches("mlp", "a.mlp.b"), matches(None, "x")
    (True, True, True)
    """
    if pattern is None or pattern == "*":
        return True
    if any(c in pattern for c in "*?["):
        return fnmatchcase(name, pattern)
    return pattern in name


@dataclass(frozen=True, slots=True)
class Level:
    """Values that hold for one expert and/or one slice, or for all where None."""

    values: Mapping[str, Form]
    expert: str | None = None
    slice: int | None = None


@dataclass(frozen=True, slots=True)
class ParameterTable:
    """Levels in order of precedence: the first level that yields a value wins."""

    levels: tuple[Level, ...] = ()

    def value(
        self, parameter: str, *, expert: str | None, slice: int, source_name: str, output_name: str, position: float
    ) -> Any:
        """Return the value of `parameter` for one tensor (and one expert), or MISSING.

        `source_name` is the tensor's name in the expert's model and is what filters of expert levels test; others
        test `output_name`. `position` is the layer's place in its slice, from 0 to 1.
        """
        for level in self.levels:
            if level.expert not in (None, expert) or level.slice not in (None, slice):
                continue
            if parameter not in level.values:
                continue
            name = source_name if level.expert is not None else output_name
            found = _resolve(level.values[parameter], name, position)
            if found is not MISSING:
                return found
        return MISSING

    def forms(self, parameter: str) -> Iterator[tuple[Level, Form]]:
        """Yield every form written for a parameter, with its level."""
        for level in self.levels:
            if parameter in level.values:
                yield level, level.values[parameter]

    def names(self) -> set[str]:
        """Return the names of all parameters that are written anywhere."""
        return {name for level in self.levels for name in level.values}


def _resolve(form: Form, name: str, position: float) -> Any:
    if isinstance(form, Filters):
        for pattern, inner in form.entries:
            if matches(pattern, name):
                return _resolve(inner, name, position)
        return MISSING
    if isinstance(form, Gradient):
        return form.at(position)
    return form
