"""Checks the candidates, finds the method by its file's name, selects, and measures the set."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from importlib import import_module
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import DataError, Problems, RecipeError, did_you_mean
from consilience.retrieval.selection.greedy import budgeted, greedy
from consilience.retrieval.selection.protocol import Candidates, Chosen, Floats, Objective, Selection

if TYPE_CHECKING:
    from consilience.retrieval.selection.graph_overlay import Overlay

__all__ = ["find_selection", "select", "selection_names", "unit_vectors"]


def select(
    vectors: ArrayLike,
    *,
    query: ArrayLike | None = None,
    relevance: ArrayLike | None = None,
    overlay: Overlay | None = None,
    k: int | None = None,
    method: str = "facility_location",
    ids: Sequence[str | int] | None = None,
    top_n: int | None = None,
    costs: ArrayLike | None = None,
    budget: float | None = None,
    unit: bool = False,
    **options: Any,
) -> Selection:
    """Choose a few of many candidates.

    >>> vectors = [[1.0, 0.1], [1.0, 0.11], [0.7, 0.7], [0.1, 1.0]]
    >>> select(vectors, query=[1.0, 0.3], k=2, method="mmr", ids=["a", "a again", "b", "c"]).ids
    ('a again', 'c')
    >>> select(vectors, query=[1.0, 0.5], costs=[90, 60, 70, 20], budget=100).indices
    (3, 1)

    vectors: (n, d), float32 or float64, of any length above 0; with `unit` they and the query have length 1 (within
    0.001) and are compared as they are. Relevance is the cosine to `query` (d,), 0 where it is below; or `relevance`
    (n,), 0 or more; or that of an `overlay` (`graph_overlay`). k: how many; 0 gives none, n or more gives all in order.
    ids: names of the candidates, for the result and for messages. top_n: go on with the most relevant ones only.
    costs (n,), above 0, and `budget`: choose for at most that much, by gain per cost; then `k` is optional. options:
    the method's own. Where no relevance is above 0, the nearest by cosine are returned (in order of rows without a
    query), and `nothing_similar` is set.

    Raises DataError for vectors, relevances or costs that cannot be used, naming the id; RecipeError for an unknown
    method or option, and for a request that does not fit together.
    """
    build = find_selection(method)
    problems = Problems()
    _check_request(k, top_n, costs, budget, [query, relevance, overlay], problems)
    _check_options(build, options, problems)
    problems.raise_if_any(RecipeError, f"selection by {method!r}")
    units = unit_vectors(vectors, ids, unit=unit)
    count = len(units)
    names: Sequence[str | int] = range(count) if ids is None else ids
    cosines = None if query is None else units @ _unit_query(query, units, unit)
    if overlay is not None:
        relevance = overlay.relevance
    scores = _relevance(cosines, relevance, names, count)
    prices = None if costs is None else _column(costs, "costs", names, count, above=True)
    rows = np.arange(count)
    if top_n is not None and top_n < count:
        rows = np.sort(np.argsort(-scores, kind="stable")[:top_n])
        units, scores = units[rows], scores[rows]
    candidates = Candidates(units, scores, rows, count)
    nothing = count > 0 and not scores.any()
    limit = len(rows) if k is None else min(int(k), len(rows))
    if nothing:
        order = np.argsort(-cosines[rows] if cosines is not None else rows, kind="stable")
        picks = [(int(place), 0.0) for place in _affordable(order, prices, rows, budget)[:limit]]
    else:
        picks = _picks(partial(build, candidates, **options), len(rows), limit, prices, rows, budget, method)
    chosen = tuple(
        Chosen(
            int(rows[place]),
            names[rows[place]],
            float(scores[place]),
            gain,
            *((overlay.reached(int(rows[place])), overlay.hops_of(int(rows[place]))) if overlay is not None else ()),
        )
        for place, gain in picks
    )
    places = np.array([place for place, _ in picks], np.int64)
    coverage, mean_similarity = _measures(candidates, places)
    return Selection(
        method,
        chosen,
        coverage,
        mean_similarity,
        float(scores[places].sum()),
        len(rows),
        nothing,
        None if prices is None else float(prices[rows[places]].sum()),
    )


@lru_cache(maxsize=1)
def selection_names() -> tuple[str, ...]:
    """Return the names of all selection methods: the files in `methods/`. Imports none of them.

    >>> "mmr" in selection_names()
    True
    """
    return tuple(sorted(p.stem for p in (Path(__file__).parent / "methods").glob("*.py") if p.stem[0] != "_"))


@cache
def find_selection(name: str) -> Callable[..., Objective]:
    """Return a selection method by name.

    >>> find_selection("mmr").__name__
    'mmr'

    Raises RecipeError naming the closest method when there is none of that name.
    """
    if name not in selection_names():
        raise RecipeError(f"selection method {name!r} is unknown{did_you_mean(name, selection_names())}")
    function: Callable[..., Objective] = getattr(import_module(f"consilience.retrieval.selection.methods.{name}"), name)
    return function


def unit_vectors(vectors: ArrayLike, ids: Sequence[str | int] | None = None, *, unit: bool = False) -> Floats:
    """Return vectors of length 1 in float32 or float64, the same array where they have that length already.

    >>> unit_vectors([[3.0, 4.0]])
    array([[0.6, 0.8]])

    unit: they are said to have length 1, within 0.001, and stay as they are. Raises DataError naming the id of a vector
    that is zero, not finite, or not of the length it is said to have.
    """
    rows: Floats = np.asarray(vectors)
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float32 if rows.dtype == np.float16 else np.float64)
    if rows.size == 0 and rows.ndim in (1, 2):
        rows = rows.reshape(0, rows.shape[1] if rows.ndim == 2 else 0)
    if rows.ndim != 2:
        raise DataError(f"vectors have shape {rows.shape}; give (candidates, dimension)")
    if ids is not None and len(ids) != len(rows):
        raise DataError(f"{len(ids)} ids for {len(rows)} vectors; give as many")
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        bad = np.flatnonzero(~(np.isfinite(rows).all(axis=1) & rows.any(axis=1)))
        if len(bad):
            first = int(bad[0])
            what = "zero" if np.isfinite(rows[first]).all() else "not finite (NaN or infinity)"
            name = first if ids is None else ids[first]
            raise DataError(
                f"the vector of {name!r} is {what}, {len(bad)} of {len(rows)} in all; "
                "it has no direction to compare: leave it out or encode it again"
            )
        # Squares that are too large or too small for the type.
        rows = rows / np.abs(rows).max(axis=1, keepdims=True)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    apart = np.abs(norms - 1)
    if unit and len(norms) and apart.max() > 1e-3:
        first = int(np.argmax(apart))
        name = first if ids is None else ids[first]
        raise DataError(f"the vector of {name!r} has length {norms[first]:.6g}, not 1; leave `unit` away")
    if unit or not len(norms) or apart.max() <= 4 * np.finfo(rows.dtype).eps:
        return rows
    units: Floats = rows / norms[:, None]
    return units


def _unit_query(query: ArrayLike, units: Floats, unit: bool) -> Floats:
    row = np.asarray(query)
    if len(units) and row.shape != (units.shape[1],):
        raise DataError(f"the query has shape {row.shape}, the vectors {units.shape}; give ({units.shape[1]},)")
    if not len(units):
        return np.zeros(units.shape[1], units.dtype)
    found: Floats = unit_vectors(row[None, :], ["the query"], unit=unit)[0].astype(units.dtype)
    return found


def _relevance(
    cosines: Floats | None, relevance: ArrayLike | None, names: Sequence[str | int], count: int
) -> NDArray[np.float64]:
    if relevance is not None:
        return _column(relevance, "relevance", names, count, above=False)
    assert cosines is not None  # the request has been checked
    return np.maximum(cosines.astype(np.float64), 0.0)


def _column(
    values: ArrayLike, what: str, names: Sequence[str | int], count: int, *, above: bool
) -> NDArray[np.float64]:
    """Return finite numbers, one per candidate, from 0 or from above 0."""
    column = np.asarray(values, np.float64)
    if column.shape != (count,):
        raise DataError(f"{what} has shape {column.shape} for {count} candidates; give ({count},)")
    bad = np.flatnonzero(~(np.isfinite(column) & ((column > 0) if above else (column >= 0))))
    if len(bad):
        asked = "numbers above 0" if above else "numbers from 0 on"
        raise DataError(f"{what} of {names[int(bad[0])]!r} is {column[bad[0]]:g}, {len(bad)} in all; give {asked}")
    return column


def _check_request(
    k: int | None,
    top_n: int | None,
    costs: ArrayLike | None,
    budget: float | None,
    sources: Sequence[Any],
    problems: Problems,
) -> None:
    query, relevance, overlay = sources
    if query is None and relevance is None and overlay is None:
        problems.add("relevance is missing; give `query`, `relevance` or `overlay`")
    if relevance is not None and overlay is not None:
        problems.add("`relevance` and `overlay` both say what is relevant; give one of them")
    if k is None and budget is None:
        problems.add("`k` is missing; say how many to choose, or give `costs` and `budget`")
    for name, value, least in (("k", k, 0), ("top_n", top_n, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
            problems.add(f"{name}: {value!r} is not a whole number from {least} on")
    if (costs is None) != (budget is None):
        problems.add("`costs` and `budget` go together; one of them is missing")
    if budget is not None and (not isinstance(budget, Real) or not math.isfinite(budget) or budget < 0):
        problems.add(f"budget: {budget!r} is not a number from 0 on")


def _check_options(build: Callable[..., Objective], options: dict[str, Any], problems: Problems) -> None:
    known = [name for name in inspect.signature(build).parameters if name != "candidates"]
    for name in options:
        if name not in known:
            problems.add(f"option {name!r} is unknown{did_you_mean(name, known) if known else '; it takes none'}")


def _picks(
    build: Callable[[], Objective],
    count: int,
    limit: int,
    prices: NDArray[np.float64] | None,
    rows: NDArray[np.int64],
    budget: float | None,
    method: str,
) -> list[tuple[int, float]]:
    if limit == 0:
        return []
    if prices is None or budget is None:
        return greedy(build(), count, limit)
    if not build().submodular:
        raise RecipeError(
            f"selection by {method!r} has no form with a budget: its gains can grow or be negative, so gain per cost "
            "means nothing; take facility_location, clusters or top_k"
        )
    return budgeted(build, prices[rows], float(budget), limit)


def _affordable(
    order: NDArray[np.int64], prices: NDArray[np.float64] | None, rows: NDArray[np.int64], budget: float | None
) -> list[int]:
    """Return the places of an order that fit into the budget, one after the other."""
    if prices is None or budget is None:
        return [int(place) for place in order]
    found, left = [], budget * (1 + 1e-12)
    for place in order:
        if prices[rows[place]] <= left:
            left -= prices[rows[place]]
            found.append(int(place))
    return found


def _measures(candidates: Candidates, places: NDArray[np.int64]) -> tuple[float, float]:
    """Return coverage and mean similarity over pairs."""
    if len(places) == 0:
        return 0.0, 0.0
    total = float(candidates.relevance.sum())
    chosen = candidates.vectors[places]
    nearest = np.empty(len(candidates))
    for start in range(0, len(candidates), step := max(1, 4_000_000 // len(places))):
        block = candidates.vectors[start : start + step] @ chosen.T
        nearest[start : start + step] = np.clip(block.max(axis=1), 0.0, 1.0)
    coverage = float(candidates.relevance @ nearest) / total if total else 0.0
    if len(places) < 2:
        return coverage, 0.0
    pairs = np.clip((chosen @ chosen.T)[np.triu_indices(len(places), 1)], 0.0, 1.0)
    return coverage, float(pairs.mean(dtype=np.float64))
