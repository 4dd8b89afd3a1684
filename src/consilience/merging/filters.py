"""Filters of parameters that match no tensor: nearly always a misspelt name."""

from __future__ import annotations

from collections.abc import Sequence

from consilience.merging.layout import Origin
from consilience.merging.parameters import Filters, Level, ParameterTable, matches

__all__ = ["unmatched_filters"]


def unmatched_filters(table: ParameterTable, origins: Sequence[Origin]) -> list[str]:
    """Return a notice for every filter that matches no tensor it could apply to."""
    found = []
    for level in table.levels:
        for parameter, form in level.values.items():
            if not isinstance(form, Filters):
                continue
            names = _names(level, origins)
            for pattern, _ in form.entries:
                if not any(matches(pattern, name) for name in names):
                    whose = f" of {level.expert!r}" if level.expert else ""
                    found.append(f"parameters.{parameter}{whose}: the filter {pattern!r} matches no tensor")
    return found


def _names(level: Level, origins: Sequence[Origin]) -> set[str]:
    """Return the names that a level's filters test: those in the expert's model, else those of the output."""
    inside = [origin for origin in origins if level.slice in (None, origin.slice)]
    if level.expert is None:
        return {origin.name for origin in inside}
    return {origin.experts[level.expert] for origin in inside if level.expert in origin.experts}
