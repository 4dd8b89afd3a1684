"""Methods as data: the decorator that turns one typed function into a method of the library.

The function's signature is the only place where parameters, their types, ranges and defaults are written; recipes,
the command line and the documentation read them from there. A method file holds one such function.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from consilience.errors import RecipeError, did_you_mean
from consilience.merging.steps import Steps

__all__ = [
    "Aux",
    "Between",
    "Chosen",
    "Law",
    "Method",
    "Parameter",
    "PerExpert",
    "Recorded",
    "Regex",
    "Share",
    "each",
    "find_method",
    "method",
    "method_names",
]

T = TypeVar("T")
Law = Literal["idempotent", "zero_weight", "permutation", "scale"]
BaseRule = Literal["required", "optional", "none"]


@dataclass(frozen=True)
class Between:
    """The range of a number, both ends included."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        return f"between {self.low:g} and {self.high:g}"


class _PerExpert:
    pass


PER_EXPERT = _PerExpert()
PerExpert = Annotated[tuple[T, ...], PER_EXPERT]
"""One value per expert, in the order of the experts; written as one value for all or as {expert: value}."""

Share = Annotated[float, Between(0.0, 1.0)]


class _Regex:
    pass


class _Chosen:
    pass


Regex = Annotated[str, _Regex()]
"""A regular expression, matched from the start of tensor names; empty: not given."""

Chosen = Annotated[int, _Chosen()]
"""One of the experts: its name in recipes (empty, the default: none); the method gets its index, or -1 for none."""


@dataclass(frozen=True)
class Aux:
    """An artefact that a method needs beside the weights: measured on data, found by the name of the tensor.

    `per_expert`: each expert has its own. `shape`: that of the tensor ("same"), a square matrix over its last axis
    ("gram"), a vector over it ("columns"), a single number ("scalar"), or "any". `every`: each merged tensor must
    have one.
    """

    per_expert: bool = True
    shape: Literal["same", "gram", "columns", "scalar", "any"] = "same"
    every: bool = True

    def expected(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape for a tensor of this shape, None where any is right."""
        last = shape[-1:]
        return {"same": shape, "gram": last * 2, "columns": last, "scalar": (), "any": None}[self.shape]


@dataclass(frozen=True)
class Recorded:
    """Marks a number per expert that training wrote down; where a recipe gives none, the plan looks it up.

    `metric` and `window` are the parameters that say which number, and over how many logged values it is averaged.
    """

    metric: str
    window: str


class each(tuple[T, ...]):
    """The default of a per-expert parameter: this value for each expert."""

    def __new__(cls, value: T) -> each[T]:
        """Hold `value` once."""
        return super().__new__(cls, (value,))


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method: its name in recipes, type, range and default."""

    name: str
    argument: str
    kind: type
    per_expert: bool
    required: bool
    default: Any
    allowed: Between | None = None
    choices: tuple[str, ...] = ()
    regex: bool = False
    chosen: bool = False
    recorded: Recorded | None = None

    def describe(self) -> str:
        """Return type and range in words, as help and error messages show them."""
        if self.chosen:
            return "the name of an expert"
        if self.regex:
            return "a regular expression"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}[self.kind]
        return f"{words} {self.allowed}" if self.allowed else words

    def check(self, value: Any) -> tuple[Any, str | None]:
        """Return the value in its type and None, or the value and what is wrong with it."""
        wrong = f"{value!r} is not {self.describe()}"
        if self.regex and isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                return value, f"{wrong}: {error}"
        if self.choices:
            return (value, None) if value in self.choices else (value, wrong + did_you_mean(str(value), self.choices))
        if self.kind is bool:
            return (value, None) if isinstance(value, bool) else (value, wrong)
        if self.kind is float and isinstance(value, str):  # YAML takes 1e-4 for a text
            value = _number(value)
        if isinstance(value, bool) or not isinstance(value, int | float | str) or isinstance(value, str):
            return (value, None) if self.kind is str and isinstance(value, str) else (value, wrong)
        if not math.isfinite(value) or (self.kind is int and value != int(value)):
            return value, wrong
        if self.allowed and not self.allowed.low <= value <= self.allowed.high:
            return value, wrong
        return self.kind(value), None


def _number(text: str) -> float | str:
    """Return the number that a text is, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Method:
    """A merging method: its function, what it needs, and the laws it obeys."""

    name: str
    function: Callable[..., Steps]
    base: BaseRule
    min_experts: int
    max_experts: int | None
    laws: frozenset[str]
    parameters: Mapping[str, Parameter]
    aux: Mapping[str, Aux] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the method's documentation."""
        return self.documentation.splitlines()[0]

    @property
    def documentation(self) -> str:
        """The documentation of the method's file."""
        module = inspect.getmodule(self.function)
        return inspect.cleandoc((module and module.__doc__) or "")

    def build(self, parameters: Mapping[str, Any]) -> Steps:
        """Bind checked parameters (recipe names). Raises ValueError where values do not go together."""
        return self.function(**{self.parameters[name].argument: value for name, value in parameters.items()})

    def defaults(self, experts: int) -> dict[str, Any]:
        """Return the defaults of all parameters that have one."""
        return {
            p.name: p.default * experts if p.per_expert else p.default
            for p in self.parameters.values()
            if not p.required
        }


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    per_expert = regex = chosen = False
    allowed: Between | None = None
    recorded: Recorded | None = None
    choices: tuple[str, ...] = ()
    while get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        per_expert = per_expert or PER_EXPERT in extras
        regex = regex or any(isinstance(e, _Regex) for e in extras)
        chosen = chosen or any(isinstance(e, _Chosen) for e in extras)
        allowed = next((e for e in extras if isinstance(e, Between)), allowed)
        recorded = next((e for e in extras if isinstance(e, Recorded)), recorded)
        if per_expert and get_origin(hint) is tuple:
            hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        hint = str
    required = default is inspect.Parameter.empty
    if chosen:
        hint, default = str, default if required else ""
    value = None if required else default
    return Parameter(
        name.rstrip("_"), name, hint, per_expert, required, value, allowed, choices, regex, chosen, recorded
    )


def method(
    *,
    base: BaseRule,
    laws: tuple[Law, ...],
    min_experts: int = 1,
    max_experts: int | None = None,
    aux: Mapping[str, Aux] | None = None,
) -> Callable[[Callable[..., Steps]], Method]:
    """Declare a merging method; the decorated function binds parameters and returns the steps.

    >>> from consilience.merging.method import find_method
    >>> find_method("ties").parameters["density"].describe()
    'a number between 0 and 1'
    """

    def declare(function: Callable[..., Steps]) -> Method:
        hints = get_type_hints(function, include_extras=True)
        signature = inspect.signature(function).parameters.values()
        parameters = [_parameter(p.name, hints[p.name], p.default) for p in signature]
        return Method(
            function.__name__,
            function,
            base,
            min_experts,
            max_experts,
            frozenset(laws),
            {p.name: p for p in parameters},
            dict(aux or {}),
        )

    return declare


@lru_cache(maxsize=1)
def method_names() -> tuple[str, ...]:
    """Return the names of all methods: the files in `methods/`. Imports none of them.

    >>> "ties" in method_names()
    True
    """
    folder = Path(__file__).parent / "methods"
    return tuple(sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")))


@cache
def find_method(name: str) -> Method:
    """Return a method by name.

    >>> find_method("linear").name
    'linear'

    Raises RecipeError naming the closest method when there is none of that name.
    """
    if name not in method_names():
        raise RecipeError(f"method {name!r} is unknown{did_you_mean(name, method_names())}")
    found = getattr(import_module(f"consilience.merging.methods.{name}"), name)
    assert isinstance(found, Method)
    return found
