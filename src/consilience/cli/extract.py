"""`consilience extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import note, show_json, show_table


def extract(
    model: Annotated[str, typer.Argument(help="The fine-tuned model.")],
    base: Annotated[str, typer.Option("--base", help="The model it was fine-tuned from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the adapter.")],
    rank: Annotated[int | None, typer.Option(help="Rank of every layer.")] = None,
    max_error: Annotated[
        float | None, typer.Option("--max-error", help="Instead: share of a layer's change that may be lost, 0 to 1.")
    ] = None,
    max_rank: Annotated[int, typer.Option("--max-rank", help="Largest rank with --max-error.")] = 128,
    embeddings: Annotated[
        str, typer.Option(help="Changed embeddings and heads: whole (kept whole), lora (factored), leave.")
    ] = "whole",
    include: Annotated[str, typer.Option(help="Regular expression of tensor names to take.")] = "",
    exclude: Annotated[str, typer.Option(help="Regular expression of tensor names to leave.")] = "",
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write what a fine-tuned model changed in its base as a LoRA adapter, the rank given or chosen by error."""
    from consilience.merging.extraction import extract_adapter

    found = extract_adapter(
        model,
        base,
        out,
        rank=rank,
        max_error=max_error,
        max_rank=max_rank,
        embeddings=embeddings,  # type: ignore[arg-type]  # a wrong word is reported with the other problems
        include=include,
        exclude=exclude,
        device=device,
        progress=False if as_json else None,
    )
    if found.left:
        note(f"note: {len(found.left)} changed tensor(s) that LoRA cannot hold are left out ({', '.join(found.left)})")
    if as_json:
        show_json({**vars(found), "out": str(found.out)})
        return
    worst = sorted(found.errors, key=lambda module: -found.errors[module])[:5]
    rows = [
        ("layers", str(len(found.ranks))),
        ("ranks", f"{min(found.ranks.values(), default=0)} to {max(found.ranks.values(), default=0)}"),
        ("kept whole", ", ".join(found.saved) or "none"),
        ("change lost", f"{found.error:.2%}"),
        *((f"  {module}", f"rank {found.ranks[module]}, {found.errors[module]:.2%} lost") for module in worst),
    ]
    show_table(str(found.out), ("", ""), rows)
