"""`consilience merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import amount, note, show_json, show_table


def merge(
    recipe: Annotated[Path, typer.Argument(help="Recipe file: native, or in mergekit's language.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must be new, empty or an earlier merge.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (default: all processors).")] = None,
    budget: Annotated[float | None, typer.Option(help="Stop after this many seconds; run again to resume.")] = None,
    device: Annotated[str, typer.Option(help="Where matrix methods compute: cpu, cuda, cuda:1.")] = "cpu",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a parameter: NAME=VALUE or NAME.EXPERT=VALUE.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Unknown keys of mergekit recipes are errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Merge models by a recipe. The same command resumes after an interruption."""
    from consilience.core.jobs import Budget
    from consilience.merging.recipe import load_recipe

    loaded = load_recipe(recipe, strict=strict, settings=settings or ())
    for warning in loaded.request.warnings:
        note(f"warning: {warning}")
    limits = Budget(wall_seconds=budget) if budget is not None else None
    result = loaded.run(out, workers=threads, budget=limits, progress=False if as_json else None, device=device)
    for notice in result.notices:
        if notice not in loaded.request.warnings:
            note(f"note: {notice}")
    if as_json:
        show_json({"out": str(result.out), "resumed": result.resumed, **result.manifest})
        return
    spent = f"{result.seconds:.1f} s ({result.cpu_seconds:.1f} CPU s)"
    if result.resumed:
        spent = f"{spent}, resumed" if result.seconds else "none: it is there already, made by an earlier run"
    size = sum(entry["bytes"] for entry in result.manifest["files"])
    rows = [
        ("method", result.manifest["method"]),
        ("models", ", ".join(result.manifest["models"])),
        ("parameters", f"{result.manifest['parameters']:,}"),
        ("written", f"{amount(size)} in {len(result.manifest['files'])} file(s), verified"),
        ("checksum", result.manifest["checksum"]),
        ("time", spent),
    ]
    if result.error is not None:
        rows.append(("truncation error", f"{result.error:.2%} of the merged task vector"))
    show_table(f"{result.out}", ("", ""), rows)
