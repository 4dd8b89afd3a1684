"""`consilience methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from consilience.cli.output import show_json, show_table


def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the merging methods, or show one with its formula, parameters and source."""
    from consilience.merging.catalogue import methods as catalogue
    from consilience.merging.method import find_method

    chosen = [m for m in catalogue() if name is None or m["name"] == find_method(name).name]
    if as_json:
        show_json(chosen if name is None else chosen[0])
        return
    if name is None:
        table = [(m["name"], m["base"], ", ".join(m["parameters"]), m["summary"]) for m in chosen]
        show_table("methods", ("name", "base", "parameters", "what it does"), table)
        return
    print(chosen[0]["documentation"], end="\n\n")
    rows = [
        (key, p["type"] + (", per expert" if p["per_expert"] else ""), "required" if p["required"] else p["default"])
        for key, p in chosen[0]["parameters"].items()
    ]
    show_table("parameters", ("name", "value", "default"), rows)
    for kind, aux in chosen[0]["aux"].items():
        print(f"needs aux: {kind} ({'one per expert' if aux['per_expert'] else 'one for all experts'})")
    print(f"laws: {', '.join(chosen[0]['laws'])}")
