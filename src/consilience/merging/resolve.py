"""The parameters of one tensor: levels, filters and gradients resolved, checked against the method's signature."""

from __future__ import annotations

from typing import Any

from consilience.errors import Problems
from consilience.merging.binding import check_value, chosen_index
from consilience.merging.layout import Origin
from consilience.merging.method import Method, Parameter
from consilience.merging.parameters import MISSING, Filters, Form, Gradient
from consilience.merging.request import MergeRequest

__all__ = ["Resolver"]


class Resolver:
    """Resolves and checks parameters; every distinct combination is bound to the method once, as a trial."""

    def __init__(self, request: MergeRequest, method: Method, problems: Problems) -> None:
        self.request = request
        self.method = method
        self.problems = problems
        self._absent: dict[tuple[str, str | None], list[str]] = {}
        self._tried: set[tuple[Any, ...]] = set()
        self._shared: set[tuple[Any, ...]] = set()
        for parameter in method.parameters.values():
            for level, form in request.parameters.forms(parameter.name):
                where = f"parameters.{parameter.name}" + (f" of {level.expert!r}" if level.expert else "")
                _check_form(parameter, form, where, problems)

    def parameters(self, origin: Origin, order: tuple[str, ...]) -> dict[str, Any]:
        """Return all parameters for one output tensor; per-expert ones as tuples in `order`."""
        values: dict[str, Any] = {}
        for name, parameter in self.method.parameters.items():
            if parameter.per_expert:
                values[name] = tuple(self._value(parameter, origin, expert) for expert in order)
            else:
                values[name] = self._value(parameter, origin, None)
            if parameter.chosen:
                values[name] = chosen_index(name, values[name], order, self.problems)
        self._try(values, order)
        return values

    def _value(self, parameter: Parameter, origin: Origin, expert: str | None) -> Any:
        value = self.request.parameters.value(
            parameter.name,
            expert=expert,
            slice=origin.slice,
            source_name=origin.experts[expert] if expert else origin.name,
            output_name=origin.name,
            position=origin.position,
        )
        if value is MISSING:
            if parameter.required or parameter.name in self.request.required:
                self._absent.setdefault((parameter.name, expert), []).append(origin.name)
                return 0.0
            return parameter.default[0] if parameter.per_expert else parameter.default
        return parameter.check(value)[0]  # every written value was checked when the recipe was read

    def finish(self) -> None:
        """Report required parameters that no level gives to some tensor, once each."""
        for (name, expert), tensors in self._absent.items():
            whose = f" of {expert!r}" if expert else ""
            more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            self.problems.add(
                f"parameters.{name}{whose}: method {self.method.name!r} requires it "
                f"({self.method.parameters[name].describe()}); none is given for tensor {tensors[0]!r}{more}"
            )

    def _try(self, values: dict[str, Any], order: tuple[str, ...]) -> None:
        key = (order, *values.items())
        if self.problems or self._absent or key in self._tried:
            return
        self._tried.add(key)
        try:
            steps = self.method.build(values)
        except ValueError as error:
            self.problems.add(f"parameters.{error}")
            return
        if steps.scope == "global":
            self._shared.add(steps.shared)
            if len(self._shared) > 1:
                self.problems.add(
                    f"parameters: statistics over the whole model need one value for all tensors; "
                    f"found {' and '.join(map(str, sorted(self._shared, key=str)))}"
                )


def _check_form(parameter: Parameter, form: Form, where: str, problems: Problems) -> None:
    """Check every value that is written, also where no tensor would use it."""
    if isinstance(form, Filters):
        for _, inner in form.entries:
            _check_form(parameter, inner, where, problems)
    elif isinstance(form, Gradient):
        for value in form.values:
            check_value(parameter, value, where, problems)
    else:
        check_value(parameter, form, where, problems)
