"""The reference implementations' parameter names and values, as our methods and parameters.

One table: method and source repository, then the reference's parameter. Every rule gives the parameters of ours that
follow from one value; a parameter without a rule makes its case fail, so that nothing is dropped unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

Rule = Callable[[Any, int], dict[str, Any]]
Groups = Mapping[str, Mapping[str, Any]]

MERGEKIT = "arcee-ai/mergekit"
TIES = "prateeky2806/ties-merging"
MERGELM = "yule-BUAA/MergeLM"
EMR = "harveyhuang18/EMR_Merging"
BREADCRUMBS = "rezazzr/breadcrumbs"


class Untranslated(Exception):
    """The table has no row for a case."""


@dataclass(frozen=True)
class Translation:
    """How one reference's parameters are said here.

    `masks`: the case supplies the random draws. `aux`: the artefacts of a case, from its tensors by group and the
    experts' names. `merge`: how the case is merged where one call of a method is not all of it; it gets the case, its
    tensors by group, the experts' names and our parameters. `extra`: further checks; it gets the case, its tensors by
    group, our parameters and the result, and returns problems.
    """

    rules: Mapping[str, Rule]
    masks: bool = False
    aux: Callable[[Groups, Sequence[str]], Mapping[str, Any]] | None = None
    merge: Callable[[Mapping[str, Any], Groups, Sequence[str], Mapping[str, Any]], Mapping[str, Any]] | None = None
    extra: Callable[[Mapping[str, Any], Groups, Mapping[str, Any], Mapping[str, Any]], list[str]] | None = None
    method: str = ""


def same(name: str) -> Rule:
    """Our parameter of that name takes the value as it is."""
    return lambda value, experts: {name: value}


def choose(name: str, values: Mapping[Any, Any]) -> Rule:
    """Our parameter takes what stands for the value."""
    return lambda value, experts: {name: values[value]}


def fixed(expected: Any) -> Rule:
    """The reference has a switch that we do not: only one position of it can be said."""

    def rule(value: Any, experts: int) -> dict[str, Any]:
        if value != expected:
            raise Untranslated(f"{value!r} where only {expected!r} can be said")
        return {}

    return rule


def without_effect(value: Any, experts: int) -> dict[str, Any]:
    """The value changes nothing in the result."""
    return {}


def mean_of_experts(value: str, experts: int) -> dict[str, Any]:
    """MergeLM's choice of the merge that follows the dropping."""
    if value == "average_merging":
        return {"weight": 1.0 / experts}
    return {"task_arithmetic": {}, "ties_merging": {"merge_function": "mean"}}[value]


def also(name: str, **ours: Any) -> Rule:
    """Our parameter of that name takes the value as it is, and the reference implies values of others of ours."""
    return lambda value, experts: {name: value, **ours}


def plain(*names: str) -> dict[str, Rule]:
    return {name: same(name) for name in names}


RESCALE = choose("rescale", {True: "l1", False: "none"})
MERGE_FUNCTION = choose("merge_function", {True: "mean", False: "sum"})
DARE = {
    "weight_mask_rates": lambda value, experts: {"density": [1.0 - rate for rate in value]},
    "use_weight_rescale": choose("rescale", {True: "inverse", False: "none"}),
    "mask_strategy": fixed("random"),
    "mask_apply_method": mean_of_experts,
    "scaling_coefficient": same("lambda"),
}

TABLE: Mapping[tuple[str, str], Translation] = {
    ("linear", MERGEKIT): Translation(plain("weight", "normalize")),
    ("slerp", MERGEKIT): Translation(
        {"t": same("t"), "DOT_THRESHOLD": fixed(0.9995), "eps": fixed(1e-8)},
    ),
    ("task_arithmetic", MERGEKIT): Translation(
        {**plain("weight", "normalize", "lambda"), "rescale": without_effect, "density": without_effect}
    ),
    ("ties", MERGEKIT): Translation(
        {**plain("weight", "density", "lambda"), "normalize": MERGE_FUNCTION, "rescale": fixed(False)}
    ),
    ("ties", TIES): Translation(
        {
            "reset_type": fixed("topk"),
            "reset_thresh": lambda value, experts: {"density": value / 100, "scope": "global"},
            "resolve_method": fixed("mass"),
            "merge_func": choose("merge_function", {"dis-mean": "mean", "dis-sum": "sum", "dis-max": "max"}),
            "lambda": same("lambda"),
        }
    ),
    ("dare_linear", MERGEKIT): Translation(
        {**plain("weight", "density", "lambda", "normalize"), "rescale": RESCALE}, masks=True
    ),
    ("dare_linear", MERGELM): Translation(DARE, masks=True),
    ("dare_ties", MERGEKIT): Translation(
        {**plain("weight", "density", "lambda"), "normalize": MERGE_FUNCTION, "rescale": RESCALE}, masks=True
    ),
    ("dare_ties", MERGELM): Translation({**DARE, "param_value_mask_rate": same("trim")}, masks=True),
    ("nuslerp", MERGEKIT): Translation(plain("weight", "nuslerp_flatten", "nuslerp_row_wise")),
    ("multislerp", MERGEKIT): Translation(plain("weight", "normalize_weights", "eps")),
    ("karcher", MERGEKIT): Translation(plain("max_iter", "tol")),
    ("della", MERGEKIT): Translation(
        {**plain("weight", "density", "lambda", "epsilon"), "normalize": MERGE_FUNCTION, "rescale": RESCALE}, masks=True
    ),
    ("della_linear", MERGEKIT): Translation(
        {**plain("weight", "density", "lambda", "epsilon", "normalize"), "rescale": RESCALE}, masks=True
    ),
    ("breadcrumbs", MERGEKIT): Translation(
        {
            **plain("weight", "density", "lambda", "normalize"),
            "gamma": also("gamma", definition="mergekit"),
            "rescale": fixed(False),
        }
    ),
    ("breadcrumbs", BREADCRUMBS): Translation(
        {
            "beta": same("density"),
            "gamma": same("gamma"),
            "alpha": same("lambda"),
            "remove_first": choose("definition", {True: "official", False: "keep_first"}),
        }
    ),
    ("breadcrumbs_ties", MERGEKIT): Translation(
        {
            **plain("weight", "density", "lambda"),
            "gamma": also("gamma", definition="mergekit"),
            "normalize": MERGE_FUNCTION,
            "rescale": fixed(False),
        }
    ),
    ("model_stock", MERGEKIT): Translation({"filter_wise": also("filter_wise", guard="absolute")}),
    ("sce", MERGEKIT): Translation({"select_topk": also("select_topk", guard="absolute"), "int8_mask": without_effect}),
    ("emr", EMR): Translation({}),
}


@cache
def table() -> Mapping[tuple[str, str], Translation]:
    """Return all rows: those above and those of the modules in translations/."""
    rows = dict(TABLE)
    for path in sorted((Path(__file__).parent / "translations").glob("*.py")):
        if not path.stem.startswith("_"):
            rows.update(import_module(f"tests.golden.translations.{path.stem}").TABLE)
    return rows


def has_translation(method: str) -> bool:
    """Whether the table has a row for a method's name, in whatever reference."""
    return any(name == method for name, _ in table())


def find_translation(method: str, source: str) -> Translation:
    """Return the row of a method and the source of a case. Raises Untranslated."""
    for repository in (source.split("@")[0], source.split(":")[0], source):
        if found := table().get((method, repository)):
            return found
    raise Untranslated(f"no row for {method!r} of {source.split('@')[0]!r} in tests/golden/translate.py")


def translate(method: str, source: str, parameters: Mapping[str, Any], experts: int) -> dict[str, Any]:
    """Return our parameters of a case. Raises Untranslated."""
    rules = find_translation(method, source).rules
    ours: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in rules:
            raise Untranslated(f"no rule for the parameter {name!r} of {method!r} of {source.split('@')[0]!r}")
        ours.update(rules[name](value, experts))
    return ours
