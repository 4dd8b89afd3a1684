"""Checks parameters against a method's signature and brings them into canonical form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consilience.errors import Problems, did_you_mean
from consilience.merging.method import Method, Parameter

__all__ = ["bind_parameters", "check_method", "check_value", "chosen_index", "unknown_parameters"]


def check_method(method: Method, experts: int, *, has_base: bool) -> list[str]:
    """Return what is wrong with the number of experts or the base."""
    problems = []
    if method.base == "required" and not has_base:
        problems.append(f"method {method.name!r} works on task vectors and needs a base model; name one as base")
    if experts < method.min_experts:
        problems.append(f"method {method.name!r} needs at least {method.min_experts} expert(s), found {experts}")
    if method.max_experts is not None and experts > method.max_experts:
        problems.append(f"method {method.name!r} takes at most {method.max_experts} expert(s), found {experts}")
    return problems


def unknown_parameters(method: Method, names: Sequence[str]) -> list[str]:
    """Return a problem for every parameter that the method does not have."""
    return [
        f"parameters.{name}: method {method.name!r} has no such parameter{did_you_mean(name, method.parameters)}"
        for name in names
        if name not in method.parameters
    ]


def check_value(parameter: Parameter, value: Any, where: str, problems: Problems) -> Any:
    """Return one value in its type, recording a problem when it is of another type or out of range."""
    checked, wrong = parameter.check(value)
    if wrong:
        problems.add(f"{where}: {wrong}")
    return checked


def chosen_index(name: str, value: Any, order: Sequence[str], problems: Problems) -> int:
    """Return the place of an expert that a parameter names, -1 where it names none."""
    if not value:
        return -1
    if value not in order:
        problems.add(f"parameters.{name}: unknown expert {value!r}{did_you_mean(str(value), order)}")
        return -1
    return list(order).index(value)


def bind_parameters(
    method: Method, written: Mapping[str, Any], order: tuple[str, ...], given: tuple[str, ...], problems: Problems
) -> dict[str, Any]:
    """Return every parameter of the method, per-expert ones as tuples in `order`; problems are recorded.

    `given` is the order of the experts as written, which sequences follow. `lambda_` and `lambda` are the same.
    """
    values = {name.rstrip("_"): value for name, value in written.items()}
    problems.extend(unknown_parameters(method, list(values)))
    bound: dict[str, Any] = {}
    for name, parameter in method.parameters.items():
        if name not in values:
            if parameter.required:
                problems.add(f"parameters.{name}: method {method.name!r} requires it ({parameter.describe()})")
                continue
            bound[name] = tuple(parameter.default) * len(order) if parameter.per_expert else parameter.default
        elif parameter.per_expert:
            each = _per_expert(name, values[name], order, given, problems)
            bound[name] = tuple(
                check_value(parameter, value, f"parameters.{name} of {expert!r}", problems)
                for expert, value in zip(order, each, strict=True)
            )
        else:
            bound[name] = check_value(parameter, values[name], f"parameters.{name}", problems)
        if parameter.chosen:
            bound[name] = chosen_index(name, bound[name], order, problems)
    if not problems:
        try:
            method.build(bound)
        except ValueError as error:
            problems.add(f"parameters.{error}")
    return bound


def _per_expert(name: str, value: Any, order: tuple[str, ...], given: tuple[str, ...], problems: Problems) -> list[Any]:
    if isinstance(value, Mapping):
        for expert in value:
            if expert not in order:
                problems.add(f"parameters.{name}: unknown expert {expert!r}{did_you_mean(str(expert), order)}")
        absent = [expert for expert in order if expert not in value]
        if absent:
            problems.add(f"parameters.{name}: no value for expert(s) {', '.join(absent)}")
        return [value.get(expert, next(iter(value.values()), 0.0)) for expert in order]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != len(order):
            problems.add(f"parameters.{name}: {len(value)} values for {len(order)} experts")
            return [value[0] if value else 0.0] * len(order)
        by_name = dict(zip(given, value, strict=True))
        return [by_name[expert] for expert in order]
    return [value] * len(order)
