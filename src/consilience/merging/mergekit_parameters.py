"""Parameters of mergekit's recipes: forms, filters and gradients read and brought under our names and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from consilience.errors import Problems, did_you_mean
from consilience.merging.located import Located
from consilience.merging.mergekit_methods import IGNORED, REQUIRED, Row, Switch, row_of
from consilience.merging.method import Method
from consilience.merging.parameters import Filters, Form, Gradient

__all__ = ["ParameterReader"]

Warn = Callable[[str], None]
_DROPPED = object()


class ParameterReader:
    """Reads the `parameters` blocks of one document for one method."""

    def __init__(self, method: Method, document: Located, problems: Problems, warn: Warn) -> None:
        self.method = method
        self.row: Row = row_of(method.name)
        self.document = document
        self.problems = problems
        self.warn = warn

    def required(self) -> tuple[str, ...]:
        """Return our names of the parameters that mergekit has no default for."""
        both = {**self.row.shared, **self.row.each}
        return tuple(name for name, default in both.items() if default is REQUIRED)

    def defaults(self) -> dict[str, Form]:
        """Return mergekit's defaults under our names."""
        found: dict[str, Form] = {}
        for name, default in {**self.row.shared, **self.row.each}.items():
            switch = self.row.switches.get(name)
            if switch is not None:
                name, default = switch.name or "", switch.values[default]
            if default is not REQUIRED and name in self.method.parameters:
                found[name] = default
        return found

    def block(self, value: Any, path: tuple[str | int, ...], *, of_model: bool) -> dict[str, Form]:
        """Return the forms of one `parameters` block by our names; `of_model` where it belongs to one model."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.problems.add(f"{self.document.where(*path)}: expected a mapping, found {value!r}")
            return {}
        forms: dict[str, Form] = {}
        for name, written in value.items():
            place = (*path, str(name))
            if not self._takes_part(str(name), place, of_model):
                continue
            ours = self._form(str(name), written, place)
            switch = self.row.switches.get(str(name))
            if ours is not _DROPPED:
                forms[(switch.name or "") if switch else str(name)] = ours
        return forms

    def _takes_part(self, name: str, place: tuple[str | int, ...], of_model: bool) -> bool:
        where = self.document.where(*place)
        if name in IGNORED:
            return False
        if name in self.row.no_effect:
            self.warn(f"{where}: has no effect on method {self.method.name!r}")
            return False
        if name not in self.row.each and name not in self.row.shared:
            known = [*self.row.each, *self.row.shared]
            self.warn(f"{where}: method {self.method.name!r} has no such parameter; ignored{did_you_mean(name, known)}")
            return False
        if of_model and name not in self.row.each:
            self.warn(f"{where}: {name!r} holds for the whole merge and is ignored here; move it to the top level")
            return False
        return True

    def _form(self, name: str, value: Any, place: tuple[str | int, ...]) -> Form:
        if isinstance(value, Mapping):
            return self._filters(name, [value], place, single=True)
        if not isinstance(value, list):
            return self._leaf(name, value, place)
        if not value:
            self.problems.add(
                f"{self.document.where(*place)}: the list is empty; write one value, a gradient over layers, or filters"
            )
            return _DROPPED
        if all(isinstance(entry, Mapping) for entry in value):
            return self._filters(name, value, place, single=False)
        if any(isinstance(entry, Mapping | list) for entry in value):
            self.problems.add(
                f"{self.document.where(*place)}: values and filters are mixed in one list; "
                "write a gradient [0.0, 1.0] or a list of {filter: ..., value: ...}"
            )
            return _DROPPED
        values = [self._leaf(name, entry, (*place, index)) for index, entry in enumerate(value)]
        return _DROPPED if _DROPPED in values else Gradient(tuple(values))

    def _filters(
        self, name: str, entries: list[Mapping[str, Any]], place: tuple[str | int, ...], *, single: bool
    ) -> Form:
        found: list[tuple[str | None, Form]] = []
        for index, entry in enumerate(entries):
            spot = place if single else (*place, index)
            where = self.document.where(*spot)
            for key in entry:
                if key not in ("filter", "value"):
                    self.warn(f"{where}: unknown key {key!r} in a filter; a filter has `filter` and `value`")
            pattern = entry.get("filter")
            if pattern is not None and not isinstance(pattern, str):
                self.problems.add(f"{where}: the filter {pattern!r} is not a text; write a part of a tensor's name")
                continue
            if pattern is not None and _literal(pattern) != pattern:
                self.warn(
                    f"{where}: filters are plain parts of names; the wildcards in {pattern!r} are taken literally"
                )
            if "value" not in entry:
                self.problems.add(f"{where}: the filter {pattern!r} has no `value`")
                continue
            if isinstance(entry["value"], Mapping):
                self.problems.add(f"{where}: a filter's `value` is a value or a gradient, not another filter")
                continue
            ours = self._form(name, entry["value"], (*spot, "value"))
            if isinstance(ours, Filters):
                self.problems.add(f"{where}: a filter's `value` is a value or a gradient, not another filter")
            elif ours is not _DROPPED:
                found.append((_literal(pattern), ours))
        return Filters(tuple(found)) if found else _DROPPED

    def _leaf(self, name: str, value: Any, place: tuple[str | int, ...]) -> Any:
        """Return one value as ours, or _DROPPED where there is nothing to say; problems are recorded."""
        switch = self.row.switches.get(name)
        where = self.document.where(*place)
        if switch is not None:
            return self._switched(name, switch, value, where)
        parameter = self.method.parameters.get(name)
        if parameter is None:
            default = self.row.each.get(name, self.row.shared.get(name))
            if value != default:
                self.problems.add(
                    f"{where}: {value!r} cannot be expressed: our method {self.method.name!r} has no such"
                )
            return _DROPPED
        if parameter.kind is bool and not isinstance(value, bool) and value in (0, 1):
            value = bool(value)
        checked, wrong = parameter.check(value)
        if wrong:
            self.problems.add(f"{where}: {wrong}")
        return checked

    def _switched(self, name: str, switch: Switch, value: Any, where: str) -> Any:
        if not isinstance(value, bool) and value not in (0, 1):
            self.problems.add(f"{where}: {value!r} is not true or false")
            return _DROPPED
        if bool(value) not in switch.values:
            self.problems.add(
                f"{where}: {name}: {str(bool(value)).lower()} is not available for method {self.method.name!r} here; "
                "remove the line or choose another method"
            )
            return _DROPPED
        if switch.name is None or switch.name not in self.method.parameters:
            return _DROPPED
        return switch.values[bool(value)]


def _literal(pattern: str | None) -> str | None:
    """Return a pattern that matches what mergekit's plain substring matches, wildcards being ordinary characters."""
    if pattern is None or pattern == "*" or not any(c in pattern for c in "*?["):
        return pattern
    return "*" + "".join(f"[{c}]" if c in "*?[" else c for c in pattern) + "*"
