"""Recipes for the methods that gathered statistics allow, with the artefacts named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

__all__ = ["recipes_of"]

_METHODS = {"fisher": "fisher", "gram": "regmean", "sequential_gram": "regmean_plusplus", "sensitivity": "sens"}


def recipes_of(
    kinds: Sequence[str],
    references: Mapping[str, str],
    base: str | None,
    merge: Mapping[str, Any],
    distance: Mapping[str, float] | None,
) -> dict[str, str]:
    """Return file name -> recipe; places of artefacts are relative to the recipe's folder.

    >>> print(recipes_of(["gram"], {"a": "models/a", "b": "models/b"}, None, {}, None)["regmean.yml"])
    version: 1
    method: regmean
    experts: {a: models/a, b: models/b}
    aux:
      gram: {a: a, b: b}
    <BLANKLINE>

    No references, no recipes; a method on task vectors needs the base.
    """
    recipes = {}
    for kind in kinds:
        method = _METHODS.get(kind)
        if method is None or not references or (method == "sens" and base is None):
            continue
        parameters: dict[str, Any] = {}
        if method == "regmean_plusplus":
            names = ("weight", "reduce_non_diagonal_ratio", "include", "exclude")
            parameters = {name: merge[name] for name in names if merge[name] != ""}
        elif method == "sens" and distance is not None:
            parameters = {"distance": dict(distance)}
        recipe: dict[str, Any] = {"version": 1, "method": method}
        if base is not None:
            recipe["base"] = base
        recipe["experts"] = dict(references)
        if parameters:
            recipe["parameters"] = parameters
        recipe["aux"] = {kind: {name: name for name in references}}
        recipes[f"{method}.yml"] = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return recipes
