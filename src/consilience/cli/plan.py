"""`consilience plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import amount, note, show_json, show_table


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file: native, or in mergekit's language.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also check this output folder and its disk.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (default: all processors).")] = None,
    scan: Annotated[bool, typer.Option("--scan", help="Also read every value and look for NaN and infinity.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor with what is done to it.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a parameter: NAME=VALUE or NAME.EXPERT=VALUE.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Unknown keys of mergekit recipes are errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what a merge would read, write and need, and every problem it would have. Reads no weights."""
    from consilience.merging.recipe import load_recipe

    made = load_recipe(recipe, strict=strict, settings=settings or ()).plan(out, workers=threads)
    if scan:
        from consilience.merging.scan import scan_values

        scan_values(made)
    facts = made.to_dict()
    if as_json:
        show_json({**facts, "tensor_table": made.tensor_table()} if tensors else facts)
        return
    for notice in made.notices:
        note(f"note: {notice}")
    models = [
        (name, entry["reference"], f"{entry['parameters']:,}", amount(entry["bytes"]))
        for name, entry in facts["models"].items()
    ]
    show_table("models", ("name", "reference", "parameters", "size"), models, right=(2, 3))
    rows = [
        ("method", facts["method"]),
        ("tensors", f"{facts['tensors']['merged']} merged, {facts['tensors']['copied']} copied"),
        ("reads", amount(facts["read_bytes"])),
        ("writes", f"{amount(facts['write_bytes'])} in {len(facts['files'])} file(s)"),
        (
            "private memory",
            f"about {amount(facts['peak_memory'])} beyond the program's own, {facts['workers']} threads",
        ),
        ("checked", "values, all finite" if scan else "headers, configs and tokenizers"),
    ]
    show_table("plan", ("", ""), rows)
    if tensors:
        table = [(t["name"], t["shape"], t["dtype"], t["action"], t["parameters"]) for t in made.tensor_table()]
        show_table("tensors", ("name", "shape", "type", "action", "parameters"), table)
