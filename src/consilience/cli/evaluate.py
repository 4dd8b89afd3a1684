"""`consilience eval`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import note, show_evaluation, show_json
from consilience.errors import Problems, RequestError


class OracleSplit(Enum):
    """Where the oracle may choose."""

    dev = "dev"
    test = "test"


def evaluate(
    suite: Annotated[Path, typer.Argument(help="A suite.yml, a folder of datasets, or a folder with a suite.yml.")],
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="NAME=MODEL or MODEL (repeatable).")] = None,
    base: Annotated[str | None, typer.Option(help="Model to compare with (NAME=MODEL or a name).")] = None,
    expert: Annotated[list[str] | None, typer.Option("--expert", "-e", help="Expert, NAME=MODEL (repeatable).")] = None,
    split: Annotated[str | None, typer.Option(help="Split to measure on (default: the suite's).")] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="At most this many queries a domain.")] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="At most this many documents a domain.")] = None,
    oracle: Annotated[
        OracleSplit | None, typer.Option(help="Split on which the oracle picks the best per domain (default: dev).")
    ] = None,
    transductive: Annotated[
        list[str] | None, typer.Option(help="Model whose learner saw unlabelled test texts; stamped (repeatable).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Write the report page here.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for vectors, reused by later runs.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: the best there is).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation as JSON.")] = False,
) -> None:
    """Measure models on a suite: a table with paired differences to the base and 95 % intervals."""
    from consilience.bench import evaluate as measure
    from consilience.data.suite import Suite

    problems = Problems()
    models = _named([*([base] if base and "=" in base else []), *(expert or []), *(model or [])], problems)
    experts = list(_named(expert or [], problems))
    if not models:
        problems.add("no model is given; name one with --model NAME=MODEL or --base NAME=MODEL")
    first = base.split("=")[0] if base else next(iter(models), "")
    problems.raise_if_any(RequestError, "eval")
    caps = {key: value for key, value in (("queries", queries), ("documents", documents)) if value is not None}
    opened = Suite.open(suite, **caps)
    done = measure(
        opened,
        models,
        base=first,
        experts=experts,
        split=split,
        oracle=None if oracle is None else oracle.value,
        transductive=tuple(transductive or ()),
        seed=seed,
        cache=cache,
        device=device,
        progress=False if as_json else None,
    )
    if report is not None:
        done.to_html(report)
        note(f"report: {report}")
    if as_json:
        show_json(done.summary())
        return
    show_evaluation(done.to_table())
    print(done.claim())


def _named(written: list[str], problems: Problems) -> dict[str, str]:
    """Return name -> reference of NAME=MODEL arguments; a bare MODEL is named by the last part of its path."""
    models: dict[str, str] = {}
    for text in written:
        name, mark, reference = text.partition("=")
        if not mark:
            name, reference = text.rstrip("/").split("/")[-1], text
        if models.get(name, reference) != reference:
            problems.add(f"--model: the name {name!r} stands twice; write NAME=MODEL with distinct names")
        models[name] = reference
    return models
