"""`consilience eval`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import note, show_evaluation, show_json, show_table
from consilience.errors import Problems, RequestError


class OracleSplit(Enum):
    """Where the oracle may choose."""

    dev = "dev"
    test = "test"


def evaluate(
    suite: Annotated[
        Path,
        typer.Argument(help="A suite.yml, a folder with one or of datasets; with --index a dataset, too."),
    ],
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
    index: Annotated[
        str | None, typer.Option(help="Measure this index instead of models: every store alone, and all together.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="With --index: filter of its documents.")] = None,
    runs: Annotated[Path | None, typer.Option(help="With --index: folder for TREC runs.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report page here.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for vectors, reused by later runs.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: the best there is).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation as JSON.")] = False,
) -> None:
    """Measure models on a suite: a table with paired differences to the base and 95 % intervals."""
    from consilience.bench import evaluate as measure
    from consilience.data.suite import Suite

    problems = Problems()
    if index is not None:
        for flag, value in (("--model", model), ("--base", base), ("--expert", expert), ("--oracle", oracle),
                            ("--report", report), ("--cache", cache), ("--documents", documents)):  # fmt: skip
            if value:
                problems.add(f"{flag} is for models; with --index the index is measured")
        problems.raise_if_any(RequestError, "eval")
        _measure_index(index, suite, split, queries, where, runs, seed, device, as_json)
        return
    for flag, text in (("--where", where), ("--runs", runs)):
        if text is not None:
            problems.add(f"{flag} goes with --index")
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


def _measure_index(
    folder: str,
    suite: Path,
    split: str | None,
    queries: int | None,
    where: str | None,
    runs: Path | None,
    seed: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure every store of an index, and all together, on the judged queries of a suite."""
    from consilience.bench.search_evaluation import evaluate_index
    from consilience.bench.table import signed
    from consilience.data.retrieval import RetrievalData
    from consilience.data.sampling import draw_order
    from consilience.data.suite import Domain, Suite
    from consilience.retrieval.index import Index

    alone = (suite / "corpus.parquet").is_file()
    opened = Suite(suite.name, {suite.name: Domain(RetrievalData.open(suite))}) if alone else Suite.open(suite)
    found = {}
    with Index.open(folder, device=device) as index:
        for name, domain in opened.domains.items():
            given, judged = domain.data.queries(split or opened.split), domain.data.qrels(split or opened.split)
            chosen = sorted(given.ids, key=draw_order)[:queries]
            texts = dict(zip(given.ids, given.texts, strict=True))
            asked = {query: texts[query] for query in chosen}
            metrics = tuple(dict.fromkeys((opened.metric, *opened.also, "recall@100")))
            found[name] = evaluate_index(index, asked, judged, metrics=metrics, where=where, seed=seed)
            if runs is not None:
                note(f"{name}: runs {', '.join(found[name].write_runs(runs / name))} in {runs / name}")
    if as_json:
        show_json({name: one.summary() for name, one in found.items()})
        return
    for name, one in found.items():
        rows = []
        for row in one.rows:
            points = "" if row.difference is None else signed(100 * row.difference.difference)
            if row.difference is not None:
                points += f" [{signed(100 * row.difference.low)}, {signed(100 * row.difference.high)}]"
            values = [f"{100 * row.means[metric]:.1f}" for metric in one.metrics]
            cost = f"{1000 * row.seconds / len(one.queries):.1f}"
            rows.append((row.name, *values, points, cost))
        columns = ("", *one.metrics, f"{one.metrics[0]} - {one.reference}, 95 %", "CPU ms a query")
        title = f"{name}: {len(one.queries)} queries, x 100"
        show_table(title, columns, rows, right=tuple(range(1, len(columns))))


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
