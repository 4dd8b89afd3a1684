"""`consilience moe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import amount, show_json, show_table


def moe(
    mixture: Annotated[Path, typer.Argument(help="Mixture file: base_model, experts, gate_mode (mergekit-moe's too).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must be new, empty or an earlier one.")],
    device: Annotated[str | None, typer.Option(help="Where the base reads the prompts: cpu, cuda.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that copy.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Build a sparse mixture of experts (mixtral, qwen2, qwen3 layouts) from dense models of one size."""
    from consilience.bundles.mixture import make_mixture

    result = make_mixture(mixture, out, device=device, workers=threads, progress=False if as_json else None)
    if as_json:
        show_json({"out": str(result.out), "resumed": result.resumed, **result.manifest})
        return
    size = sum(entry["bytes"] for entry in result.manifest["files"])
    rows = [
        ("made by", result.manifest["method"]),
        ("models", ", ".join(model["reference"] for model in result.manifest["models"].values())),
        ("parameters", f"{result.manifest['parameters']:,}"),
        ("written", f"{amount(size)} in {len(result.manifest['files'])} file(s), verified"),
        ("checksum", result.manifest["checksum"]),
    ]
    show_table(str(result.out), ("", ""), rows)
