"""`consilience demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import note, show_evaluation, show_json, show_table


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for merges and report.")] = Path("build/demo"),
    examples: Annotated[Path, typer.Option(help="The project's examples folder.")] = Path("examples"),
    full: Annotated[
        bool, typer.Option("--full", help="All queries and 1,200 documents a domain, for tight intervals.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation as JSON.")] = False,
) -> None:
    """Merge the bundled experts, evaluate base, experts and merges, write a report, and search their documents."""
    from consilience.bench.demo import run_demo
    from consilience.bench.demo_search import MERGED
    from consilience.bench.search_evaluation import HYBRID
    from consilience.bench.table import signed

    result = run_demo(examples, out, full=full, say=note, progress=False if as_json else None)
    if as_json:
        show_json({"report": str(result.report), **result.evaluation.summary(), "search": result.search.summary()})
        return
    show_evaluation(result.evaluation.to_table())
    print(result.evaluation.claim())
    found = result.search
    title = f"\nsearch over {found.documents} documents of all domains (* is relevant)"
    show_table(title, ("query", "merged model", "hybrid: words and merged model"), found.rows())
    hybrid, merged = found.evaluation.row(HYBRID), found.evaluation.row(MERGED)
    difference = hybrid.difference
    assert difference is not None
    print(
        f"nDCG@10 of all {difference.n} queries: merged model {100 * merged.means['nDCG@10']:.1f}, hybrid "
        f"{100 * hybrid.means['nDCG@10']:.1f} ({signed(100 * difference.difference)} "
        f"[{signed(100 * difference.low)}, {signed(100 * difference.high)}])"
    )
    print(f"search it: consilience search {found.index} 'your query'")
    print(f"merging took {result.merge_seconds:.0f} s, everything {result.cpu_seconds:.0f} CPU s")
    print(f"report: {result.report.resolve().as_uri()}")
