"""mergekit's methods: how their parameters are called there and what they default to, against ours.

This is the one table of differences between the two languages. A method that is written later drops in: its row is
here already, and takes effect as soon as `methods/` has a file of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from consilience.merging.method import find_method, method_names

__all__ = ["IGNORED", "METHODS", "REQUIRED", "Row", "Switch", "known_methods", "row_of"]

REQUIRED = object()
"""Stands for the default of a parameter that has none in mergekit."""

IGNORED = frozenset({"int8_mask"})
"""Parameters that change how mergekit computes, not what: accepted everywhere, without a word."""


@dataclass(frozen=True)
class Switch:
    """A yes/no of mergekit that is spelt otherwise here.

    `name` is our parameter, None where there is none; `values` are ours for yes and no. A value that is absent from
    `values` cannot be expressed and is refused.
    """

    name: str | None
    values: Mapping[bool, Any]


@dataclass(frozen=True)
class Row:
    """One method: parameters of the whole merge and of each model with mergekit's defaults, and what differs.

    `base` "apart": the base is no input of its own, even when it is listed among the models. "listed": it is an input
    where it is listed, and gives nothing but configuration and tokenizer otherwise.
    """

    shared: Mapping[str, Any] = field(default_factory=dict)
    each: Mapping[str, Any] = field(default_factory=dict)
    base: Literal["apart", "listed"] = "apart"
    switches: Mapping[str, Switch] = field(default_factory=dict)
    no_effect: frozenset[str] = frozenset()


_RESCALE = Switch("rescale", {True: "l1", False: "none"})
_NO_RESCALE = Switch(None, {False: None})
_MERGE_FUNCTION = Switch("merge_function", {True: "mean", False: "sum"})


def _task_arithmetic(
    normalize: bool, rescale: bool, *, consensus: bool, definition: str | None = None, **each: float
) -> Row:
    """Return a row of the family that sparsifies task vectors, weighs, votes and adds.

    `definition` is the one of ours that mergekit follows, where a method has several.
    """
    switches = {"rescale": _RESCALE if rescale else _NO_RESCALE}
    if consensus:
        switches["normalize"] = _MERGE_FUNCTION
    return Row(
        shared={
            "normalize": normalize,
            "rescale": rescale,
            "lambda": 1.0,
            **({"definition": definition} if definition else {}),
        },
        each={"weight": REQUIRED, "density": 1.0, **each},
        switches=switches,
    )


METHODS: Mapping[str, Row] = {
    "linear": Row({"normalize": True}, {"weight": REQUIRED}, "listed"),
    "passthrough": Row({}, {"scale": 1.0}, "listed"),
    "slerp": Row({"t": REQUIRED}),
    "nuslerp": Row({"nuslerp_flatten": True, "nuslerp_row_wise": False}, {"weight": REQUIRED}),
    "multislerp": Row({"normalize_weights": True, "eps": 1e-8}, {"weight": REQUIRED}),
    "karcher": Row({"max_iter": 10, "tol": 1e-5}, {}, "listed"),
    "task_arithmetic": Row(
        {"normalize": False, "lambda": 1.0}, {"weight": REQUIRED}, no_effect=frozenset({"density", "rescale"})
    ),
    "ties": _task_arithmetic(True, False, consensus=True),
    "dare_linear": _task_arithmetic(False, True, consensus=False),
    "dare_ties": _task_arithmetic(False, True, consensus=True),
    "della": _task_arithmetic(True, True, consensus=True, epsilon=0.15),
    "della_linear": _task_arithmetic(False, True, consensus=False, epsilon=0.15),
    "breadcrumbs": _task_arithmetic(False, False, consensus=False, definition="mergekit", gamma=0.01),
    "breadcrumbs_ties": _task_arithmetic(False, False, consensus=True, definition="mergekit", gamma=0.01),
    "model_stock": Row({"filter_wise": False, "guard": "absolute"}),
    "sce": Row({"select_topk": 1.0, "guard": "absolute"}),
    "nearswap": Row({"t": REQUIRED}),
    "arcee_fusion": Row(),
    "ram": Row({"epsilon": 1e-5}),
    "ramplus_tl": Row({"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}),
}


def known_methods() -> list[str]:
    """Return every method name that a file in mergekit's language may use: mergekit's own and ours.

    >>> "karcher" in known_methods(), "ties" in known_methods()
    (True, True)
    """
    return sorted({*METHODS, *method_names()})


@cache
def row_of(name: str) -> Row:
    """Return the row of a method that exists here; for a method of our own, its signature.

    >>> row_of("ties").each["density"]
    1.0
    """
    if name in METHODS:
        return METHODS[name]
    declared = find_method(name)
    defaults = {
        p.name: REQUIRED if p.required else p.default[0] if p.per_expert else p.default
        for p in declared.parameters.values()
    }
    each = {name: value for name, value in defaults.items() if declared.parameters[name].per_expert}
    shared = {name: value for name, value in defaults.items() if name not in each}
    return Row(shared, each, "listed" if declared.base == "none" else "apart")
