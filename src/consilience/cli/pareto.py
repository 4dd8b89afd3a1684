"""`consilience pareto`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.cli.output import note, show_json, show_table


class Search(Enum):
    """How the coefficients to evaluate are chosen."""

    map = "map"
    bayesian = "bayesian"
    nested = "nested"


class By(Enum):
    """How a preference picks a point."""

    weighted_sum = "weighted_sum"
    chebyshev = "chebyshev"


def pareto(
    recipe: Annotated[Path, typer.Argument(help="A native recipe; the weights of its experts are varied.")],
    suite: Annotated[Path, typer.Option(help="A suite.yml or a folder of datasets; each domain is a task.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for pareto.json, pareto.svg and recipe.yml.")],
    budget: Annotated[
        int | None, typer.Option(min=1, help="Evaluations of the search (default: (E+1)(E+2) of E experts).")
    ] = None,
    search: Annotated[Search, typer.Option(help="One sample, a guided one, or two models at a time.")] = Search.map,
    front: Annotated[int, typer.Option(min=1, help="At most this many points of the front are measured.")] = 8,
    prefer: Annotated[str | None, typer.Option(help="TASK=WEIGHT,...: write the recipe that suits it best.")] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="TASK>=VALUE on dev (0 to 1): only such points are chosen (repeatable).")
    ] = None,
    by: Annotated[By, typer.Option(help="How the preference picks a point.")] = By.weighted_sum,
    recipe_out: Annotated[Path | None, typer.Option("--recipe", help="Where to write the recipe.")] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="At most this many queries a domain.")] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="At most this many documents a domain.")] = None,
    seed: Annotated[int, typer.Option(help="Of the samples and the front.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: the best there is).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the front as JSON.")] = False,
) -> None:
    """Find the trade-offs between tasks: a Pareto front of the experts' weights, and the recipe for a preference."""
    from consilience.bench.pareto import run_pareto
    from consilience.data.suite import Suite
    from consilience.tuning.pareto_front import parse_constraint, parse_preference, preference_vector

    caps = {key: value for key, value in (("queries", queries), ("documents", documents)) if value is not None}
    opened = Suite.open(suite, **caps)
    preference = None if prefer is None else parse_preference(prefer)
    if preference is not None:
        preference_vector(preference, list(opened.domains))
    for bound in require or ():
        parse_constraint(bound, list(opened.domains))
    run = run_pareto(
        recipe,
        opened,
        out,
        budget=budget,
        search=search.value,
        front=front,
        preference=preference,
        seed=seed,
        device=device,
        progress=False if as_json else None,
    )
    found: dict[str, Any] = run.front.to_dict()
    if preference is not None or require:
        point = run.front.select(preference, by=by.value, require=require or ())
        place = run.write_recipe(point, recipe_out or out / "recipe.yml")
        found["chosen"] = {"coefficients": list(point.coefficients), "recipe": str(place)}
        note(f"recipe: {place}")
    if as_json:
        show_json(found)
        return
    _show(run.front, opened.split)
    note(f"picture: {out / 'pareto.svg'}")


def _show(front: Any, split: str) -> None:
    columns = [*front.experts]
    for task in front.tasks:
        columns += [f"{task} predicted", "dev", f"{split} [95 %]"]
    rows = []
    for point in front.points:
        row = [f"{value:.2f}" for value in point.coefficients]
        predicted = point.predicted or [None] * len(front.tasks)
        for told, value, held in zip(predicted, point.measured, point.held_out, strict=True):
            row += ["-" if told is None else f"{100 * told:.1f}", f"{100 * value:.1f}", _interval(held)]
        rows.append(row)
    empty = [""] * len(front.experts)
    for name, held in front.references.items():
        cells = [cell for part in held for cell in ("", "", _interval(part))]
        rows.append([name, *empty[1:], *cells])
    spent = front.evaluations
    title = f"Pareto front: {spent['search']} evaluations to find it, {spent['front']} to measure it (points)"
    show_table(title, columns, rows, right=range(len(columns)))
    for notice in front.notices:
        note(f"note: {notice}")


def _interval(held: tuple[float, float, float]) -> str:
    value, low, high = (100 * part for part in held)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
