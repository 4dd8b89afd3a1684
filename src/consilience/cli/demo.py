"""`consilience demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import note, show_evaluation, show_json


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for merges and report.")] = Path("build/demo"),
    examples: Annotated[Path, typer.Option(help="The project's examples folder.")] = Path("examples"),
    full: Annotated[
        bool, typer.Option("--full", help="All queries and 1,200 documents a domain, for tight intervals.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation as JSON.")] = False,
) -> None:
    """Merge the bundled experts, evaluate base, experts and merges, and write a report."""
    from consilience.bench.demo import run_demo

    result = run_demo(examples, out, full=full, say=note, progress=False if as_json else None)
    if as_json:
        show_json({"report": str(result.report), **result.evaluation.summary()})
        return
    show_evaluation(result.evaluation.to_table())
    print(result.evaluation.claim())
    print(f"merging took {result.merge_seconds:.0f} s, everything {result.cpu_seconds:.0f} CPU s")
    print(f"report: {result.report.resolve().as_uri()}")
