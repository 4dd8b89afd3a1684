"""`consilience bundle create|expand|info|route`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.cli.arguments import named_values, plain_value
from consilience.cli.output import amount, note, show_json, show_table
from consilience.errors import Problems, RequestError

__all__ = ["app"]

app = typer.Typer(
    name="bundle",
    help="Several experts in one folder: shared weights, what each has beyond them, and a router.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Place = Annotated[Path, typer.Argument(help="Folder of the bundle.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("create")
def create(
    base: Annotated[str, typer.Option("--base", help="The model all experts were made from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must be new, empty or an earlier one.")],
    expert: Annotated[list[str], typer.Option("--expert", "-e", help="NAME=MODEL or NAME=ADAPTER (repeatable).")],
    residual: Annotated[
        str, typer.Option(help="What is kept of each expert: low_rank, masks, emr, sparse, adapter, widths.")
    ] = "low_rank",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the residual, KEY=VALUE, such as rank=8 (repeatable).")
    ] = None,
    shared: Annotated[str | None, typer.Option(help="A method that makes the shared weights, or a model.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", help="Parameter of that method, KEY=VALUE (repeatable).")
    ] = None,
    encodes: Annotated[str, typer.Option(help="What experts of text encoders encode: query, both.")] = "query",
    as_json: AsJson = False,
) -> None:
    """Write experts of one base as shared weights and a residual each."""
    from consilience.bundles.creation import create_bundle

    problems = Problems()
    experts = named_values("--expert", expert, problems)
    options = {key: plain_value(text) for key, text in named_values("--set", setting or [], problems).items()}
    parameters = {
        key: plain_value(text) for key, text in named_values("--parameter", parameter or [], problems).items()
    }
    problems.raise_if_any(RequestError, "bundle create")
    chosen: dict[str, Any] = {"residual": residual, "shared": shared, "parameters": parameters, "encodes": encodes}
    made = create_bundle(out, base, experts, **chosen, **options)
    _show(made, as_json)


@app.command("info")
def info(bundle: Place, as_json: AsJson = False) -> None:
    """Show what a bundle holds, and its size against that of the full experts."""
    from consilience.bundles.bundle import Bundle

    _show(Bundle.open(bundle), as_json)


@app.command("expand")
def expand(
    bundle: Place,
    expert: Annotated[str, typer.Argument(help="Name of the expert.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must be new, empty or an earlier one.")],
    as_json: AsJson = False,
) -> None:
    """Write an expert of a bundle as an ordinary model folder."""
    from consilience.bundles.bundle import Bundle

    written = Bundle.open(bundle).expand(expert, out)
    if as_json:
        show_json({"out": str(written), "expert": expert})
    else:
        print(f"{written}: expert {expert}, verified")


@app.command("route")
def route(
    bundle: Place,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to route.")] = None,
    suite: Annotated[Path | None, typer.Option(help="Make or measure a router on this suite.")] = None,
    train: Annotated[
        str | None, typer.Option(help="Make a router of the suite: pilots, centroid, logistic, perceptron.")
    ] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="At most this many queries a domain and split.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which expert texts go to; with a suite, make the router and measure it on held-out queries."""
    from consilience.bundles.bundle import Bundle

    opened = Bundle.open(bundle)
    if bool(texts) == (suite is not None) or (train is not None and suite is None):
        raise RequestError("bundle route: give texts, or --suite (with --train KIND to make a router)")
    if suite is not None:
        _measured(opened, suite, train, queries, as_json)
        return
    routing = opened.route(texts or [])
    if as_json:
        show_json([dict(zip(routing.names, row, strict=True)) for row in routing.weights.tolist()])
        return
    rows = [
        [text, *(f"{weight:.2f}" for weight in row)] for text, row in zip(texts or [], routing.weights, strict=True)
    ]
    show_table(str(bundle), ("text", *routing.names), rows, right=range(1, len(routing.names) + 1))


def _measured(bundle: Any, place: Path, train: str | None, queries: int | None, as_json: bool) -> None:
    from consilience.bench.routing import fit_router, gather_routing, measure_router
    from consilience.data.suite import Suite

    suite = Suite.open(place)
    show = False if as_json else None
    if train is not None:
        seen, dev = (gather_routing(bundle, suite, split, queries=queries, progress=show) for split in ("train", "dev"))
        bundle = bundle.set_router(fit_router(bundle, train, seen, dev))
        note(f"router {train}: written to {bundle.folder / 'router'}")
    router = bundle.router
    if router is None:
        raise RequestError(f"bundle {bundle.folder} has no router; make one with --train KIND")
    report = measure_router(router, gather_routing(bundle, suite, suite.split, queries=queries, progress=show))
    if as_json:
        show_json({**vars(report), "regret": report.regret, "threshold": router.threshold})
        return
    show_table(f"{bundle.folder}: router {router.kind} on {suite.name}, {suite.split}", ("", ""), report.rows())


def _show(bundle: Any, as_json: bool) -> None:
    router = bundle.router
    if as_json:
        kept = {key: bundle.record[key] for key in ("experts", "encodes", "base", "shared", "sources", "identity")}
        show_json({"bundle": str(bundle.folder), "residual": bundle.kind, **kept, "sizes": bundle.sizes})
        return
    made = bundle.record["shared"]["from"]
    title = f"{bundle.folder}: {bundle.kind}, shared weights from {made}, router {router.kind if router else 'none'}"
    rows = [(name, amount(size), f"{share:.1%}") for name, size, share in bundle.info()]
    show_table(title, ("", "size", "of the full experts"), rows, right=(1, 2))
