"""`consilience tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.cli.arguments import named_values, plain_value
from consilience.cli.output import amount, note, show_json, show_table
from consilience.errors import Problems, RequestError


def tune(
    recipe: Annotated[Path | None, typer.Argument(help="A native recipe: its base and experts.")] = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help="How to learn; --list shows all.")] = None,
    suite: Annotated[
        Path | None, typer.Option(help="A suite of retrieval domains; those named like experts are the tasks.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="EXPERT=FOLDER of training data, instead of a suite (repeatable)."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The recipe to write, NAME.yml.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Training examples of each task.")] = 64,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, an option of the method (repeatable).")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest input in tokens (default: the suite's).")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of examples and of the method.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: the best there is).")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the methods with their options.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Learn the coefficients of a recipe from a few training examples; writes a recipe. The same command resumes."""
    if listed:
        _list(as_json)
        return
    problems = Problems()
    for what, value in (("RECIPE", recipe), ("--method", method), ("--out", out)):
        if value is None:
            problems.add(f"{what} is missing")
    folders = named_values("--data", data or [], problems)
    options = {name: plain_value(text) for name, text in named_values("--set", option or [], problems).items()}
    problems.raise_if_any(RequestError, "tune")
    assert recipe is not None and method is not None and out is not None
    from consilience.data.suite import Suite
    from consilience.tuning.tune import tune_recipe

    tuned = tune_recipe(
        recipe,
        method,
        out,
        suite=None if suite is None else Suite.open(suite),
        data=folders or None,
        examples=examples,
        max_tokens=max_tokens,
        device=device,
        seed=seed,
        options=options,
    )
    if as_json:
        show_json({"recipe": str(tuned.path), **tuned.facts, "notices": list(tuned.notices), "content": tuned.content})
        return
    _show(tuned)


def _show(tuned: Any) -> None:
    experts = list(tuned.content["experts"])
    weights = (tuned.content.get("parameters") or {}).get("weight")
    entries = tuned.content.get("coefficients") or []
    title = f"{tuned.path}: {tuned.content['method']}, learned by {tuned.facts['method']}"
    if isinstance(weights, dict):
        show_table(title, ("expert", "weight"), [(name, f"{weights[name]:.4f}") for name in experts], right=(1,))
    else:
        rows = []
        for name in experts:
            found = sorted(value for entry in entries for value in _numbers(entry.get(name, [])))
            middle = found[len(found) // 2] if found else 0.0
            low, high = (found[0], found[-1]) if found else (0.0, 0.0)
            rows.append((name, len(found), f"{low:.4f}", f"{middle:.4f}", f"{high:.4f}"))
        show_table(title, ("expert", "coefficients", "lowest", "median", "highest"), rows, right=(1, 2, 3, 4))
    peak, private = tuned.facts["peak_bytes"], tuned.facts["private_bytes"]
    memory = "" if peak is None else f", {amount(peak)} of memory at the most, {amount(private)} without mapped files"
    print(f"{tuned.facts['seconds']:.1f} s{memory}")
    for notice in tuned.notices:
        note(f"note: {notice}")


def _numbers(value: Any) -> list[float]:
    return [float(one) for one in value] if isinstance(value, list) else [float(value)]


def _list(as_json: bool) -> None:
    from consilience.tuning.learners import LEARNERS

    if as_json:
        show_json(
            {
                name: {"does": one.does, "models": one.kinds, "labels": one.labels, "options": one.options}
                for name, one in LEARNERS.items()
            }
        )
        return
    rows = [(name, ", ".join(one.kinds), "yes" if one.labels else "no", one.does) for name, one in LEARNERS.items()]
    show_table("methods of `consilience tune`", ("method", "models", "labels", "what it does"), rows)
    for name, one in LEARNERS.items():
        print(f"{name}: " + ", ".join(f"{key}={value}" for key, value in one.options.items()))
