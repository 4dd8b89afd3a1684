"""Checks the lists, finds the method by its file's name, and fuses."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib import import_module
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from consilience.errors import DataError, Problems, RecipeError, did_you_mean
from consilience.retrieval.fusion.protocol import Fused, Fusion, Key, Origin, Ranking

__all__ = ["find_fusion", "fuse", "fusion_names", "origins"]

_GIVEN = ("rankings", "weights", "names")


def fuse(
    rankings: Mapping[str, Ranking],
    method: str = "weighted",
    *,
    weights: Mapping[str, float] | None = None,
    k: int | None = None,
    **options: Any,
) -> Fused:
    """Return one ranking of all keys of several lists, best first.

    >>> lists = {"vector": [("a", 0.9), ("b", 0.7), ("c", 0.5)], "text": [("b", 12.0), ("d", 4.0)]}
    >>> fuse(lists, k=2)
    [('b', 0.75), ('a', 0.5)]
    >>> fuse(lists, "rrf", weights={"vector": 1, "text": 2}, k=1)
    [('b', 0.04891591750396616)]

    rankings: name -> [(key, score)], best first; keys are text or whole numbers, the same in every list; scores are
    finite and never rise. A list may be empty (a store that found nothing, or gave no answer in time). weights: one
    per list, 0 or more, not all 0; a list of weight 0 is left out. k: how many to return, all without it. options: the
    method's own. Equal scores keep the order in which keys are met when the lists are read one after the other.

    Raises DataError with every problem of the lists; RecipeError for a method, an option or a weight that is wrong.
    """
    function = find_fusion(method)
    problems = Problems()
    _check_request(rankings, weights, k, problems)
    _check_options(method, function, options, problems)
    problems.raise_if_any(RecipeError, f"fusion by {method!r}")
    for name, ranking in rankings.items():
        if not _is_clean(ranking):
            _check_ranking(name, ranking, problems)
    problems.raise_if_any(DataError, "rankings to fuse")
    names = [name for name in rankings if weights is None or weights[name] > 0]
    given: dict[str, Any] = dict(options)
    if "names" in _parameters(function):
        given["names"] = names
    fused = function(
        [rankings[name] for name in names], weights=None if weights is None else [weights[n] for n in names], **given
    )
    return fused if k is None else fused[:k]


def origins(rankings: Mapping[str, Ranking]) -> dict[Key, dict[str, Origin]]:
    """Return for every key the lists that had it, with rank (from 1) and score.

    >>> origins({"vector": [("a", 0.9), ("b", 0.7)], "text": [("b", 12.0)]})["b"]
    {'vector': Origin(rank=2, score=0.7), 'text': Origin(rank=1, score=12.0)}
    """
    found: dict[Key, dict[str, Origin]] = {}
    for name, ranking in rankings.items():
        for place, (key, score) in enumerate(ranking, start=1):
            found.setdefault(key, {})[name] = Origin(place, float(score))
    return found


@lru_cache(maxsize=1)
def fusion_names() -> tuple[str, ...]:
    """Return the names of all fusion methods: the files in `methods/`. Imports none of them.

    >>> "weighted" in fusion_names()
    True
    """
    return tuple(sorted(p.stem for p in (Path(__file__).parent / "methods").glob("*.py") if p.stem[0] != "_"))


@cache
def find_fusion(name: str) -> Fusion:
    """Return a fusion method by name.

    >>> find_fusion("rrf").__name__
    'rrf'

    Raises RecipeError naming the closest method when there is none of that name.
    """
    if name not in fusion_names():
        raise RecipeError(f"fusion method {name!r} is unknown{did_you_mean(name, fusion_names())}")
    function: Fusion = getattr(import_module(f"consilience.retrieval.fusion.methods.{name}"), name)
    return function


@cache
def _parameters(function: Fusion) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _check_request(
    rankings: Mapping[str, Ranking], weights: Mapping[str, float] | None, k: int | None, problems: Problems
) -> None:
    if not rankings:
        problems.add("there is no list to fuse; give at least one")
    if k is not None and (isinstance(k, bool) or not isinstance(k, Integral) or k < 1):
        problems.add(f"k: {k!r} is not a whole number of hits from 1 on")
    if weights is None:
        return
    for name in weights:
        if name not in rankings:
            problems.add(f"weights: there is no list {name!r}{did_you_mean(name, rankings)}")
    for name in rankings:
        if name not in weights:
            problems.add(f"weights: list {name!r} has none; give every list one (0 leaves it out)")
    wrong = {n: w for n, w in weights.items() if not isinstance(w, Real) or not math.isfinite(w) or w < 0}
    for name, weight in wrong.items():
        problems.add(f"weights: {weight!r} of {name!r} is not a number from 0 on")
    if not wrong and weights and not any(weights.values()):
        problems.add("weights: all are 0, so that no list would count; give one of them more")


def _check_options(method: str, function: Fusion, options: Mapping[str, Any], problems: Problems) -> None:
    parameters = _parameters(function)
    known = [name for name in parameters if name not in _GIVEN]
    for name in options:
        if name not in known:
            problems.add(f"option {name!r} is unknown{did_you_mean(name, known) if known else '; it takes none'}")
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            problems.add(f"option {name!r} is missing")


def _is_clean(ranking: Ranking) -> bool:
    """Return whether a list has nothing that `_check_ranking` would find; ten times as fast."""
    if not ranking:
        return True
    try:
        keys, scores = zip(*ranking, strict=True)
    except (TypeError, ValueError):
        return False
    if not all(issubclass(kind, (str, Integral)) for kind in set(map(type, keys))):
        return False
    if not all(issubclass(kind, Real) for kind in set(map(type, scores))):
        return False
    values = np.array(scores, np.float64)
    return len(set(keys)) == len(keys) and bool(np.isfinite(values).all() and (values[1:] <= values[:-1]).all())


def _check_ranking(name: str, ranking: Ranking, problems: Problems) -> None:
    """Record what is wrong with a list; the first of each kind."""
    seen: set[Key] = set()
    previous = math.inf
    for place, item in enumerate(ranking, start=1):
        if not (isinstance(item, tuple | list) and len(item) == 2):
            problems.add(f"list {name!r}: entry {place} is {item!r}; entries are pairs (key, score)")
            return
        key, score = item
        if not isinstance(key, str | Integral):
            problems.add(f"list {name!r}: key {key!r} at rank {place} is neither text nor a whole number")
            return
        if not isinstance(score, Real) or not math.isfinite(score):
            problems.add(f"list {name!r}: the score of {key!r} at rank {place} is {score!r}; scores are finite numbers")
            return
        if key in seen:
            problems.add(f"list {name!r}: key {key!r} is there twice, again at rank {place}; keep its best place only")
            return
        if score > previous:
            problems.add(
                f"list {name!r}: score {float(score):g} at rank {place} is above the one before; give the best first"
            )
            return
        seen.add(key)
        previous = score
