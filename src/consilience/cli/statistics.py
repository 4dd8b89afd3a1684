"""`consilience statistics`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import show_json, show_table


def statistics(
    models: Annotated[list[str], typer.Argument(help="A model, or several experts as NAME=MODEL.", metavar="MODEL...")],
    data: Annotated[
        list[str], typer.Option("--data", help="Data folder; NAME=FOLDER for each of several models (repeatable).")
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="What to gather: fisher, gram, activation, sensitivity; of several logit_distance, "
            "sequential_gram. Separated by commas.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    base: Annotated[str | None, typer.Option(help="Their base model, for the recipes that are written.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="At most this many examples of each train split.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Examples run at once.")] = 8,
    draws: Annotated[
        int | None, typer.Option(min=1, help="Outcomes drawn per example for the Fisher (default: all; texts: 1).")
    ] = None,
    ratio: Annotated[
        float, typer.Option("--reduce-non-diagonal-ratio", help="Of the merge sequential Grams are for.")
    ] = 0.95,
    max_tokens: Annotated[int | None, typer.Option(help="Longest input in tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of examples and the draws.")] = 0,
    memory: Annotated[float, typer.Option(help="Gigabytes that sums may take; beyond, more passes are made.")] = 4.0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: the best there is).")] = None,
    budget: Annotated[float | None, typer.Option(help="Stop after this many seconds; run again to resume.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Gather what statistics-based methods need from models and data. The same command resumes."""
    from consilience.core.jobs import Budget
    from consilience.tuning import gather_statistics
    from consilience.tuning.opening import open_tasks

    kinds = tuple(kind.split(","))
    tasks = open_tasks(models, data, kinds=kinds, examples=examples, max_tokens=max_tokens, device=device, seed=seed)
    record = gather_statistics(
        tasks.models,
        tasks.examples,
        out,
        kinds=kinds,
        batch=batch,
        draws=draws,
        reduce_non_diagonal_ratio=ratio,
        seed=seed,
        memory=int(memory * 1e9),
        references=tasks.references,
        base=base,
        budget=Budget(wall_seconds=budget) if budget is not None else None,
        progress=False if as_json else None,
    )
    if as_json:
        show_json(record)
        return
    rows = [(file, facts["tensors"], facts["examples"]) for file, facts in record["files"].items()]
    show_table(str(out), ("file", "tensors", "examples"), rows, right=(1, 2))
    if record["recipes"]:
        print("recipes: " + ", ".join(str(out / recipe) for recipe in record["recipes"]))
