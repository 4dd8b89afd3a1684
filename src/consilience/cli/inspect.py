"""`consilience inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import amount, show_json, show_table


def inspect(
    models: Annotated[list[str], typer.Argument(help="One model, or several to compare.")],
    base: Annotated[str | None, typer.Option(help="Base model: compare task vectors instead of whole weights.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also compare layer by layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Describe checkpoints; with several, what differs, norms, pairwise cosine and sign conflict."""
    from consilience.checkpoints.describe import describe
    from consilience.checkpoints.open import open_checkpoint

    opened = {name: open_checkpoint(name) for name in dict.fromkeys(models)}
    described = [describe(model) for model in opened.values()]
    result: dict[str, object] = {"models": described}
    if len(opened) > 1 or base:
        from consilience.merging.comparison import compare_models

        comparison = compare_models(opened, open_checkpoint(base) if base else None, per_layer=layers)
        tables = comparison.pop("tables")
        result["comparison"] = comparison
    if as_json:
        show_json(result)
        return
    for facts in described:
        show_table(str(facts.pop("reference", "")), ("", ""), [(k, _text(k, v)) for k, v in facts.items() if v])
    if len(opened) > 1 or base:
        for title, columns, rows in tables:
            show_table(title, columns, rows, right=range(1, len(columns)))


def _text(key: str, value: object) -> str:
    if key == "files" and isinstance(value, list):
        return ", ".join(f"{Path(file['path']).name} {amount(file['bytes'])}" for file in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(k, v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text("", v) for v in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return amount(value) if "bytes" in key else f"{value:,}"
    return str(value)
