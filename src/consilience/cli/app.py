"""The application: its verbs, and how errors reach the user."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import consilience
from consilience.cli import (
    bundle,
    demo,
    evaluate,
    extract,
    index,
    inspect,
    merge,
    methods,
    moe,
    pareto,
    plan,
    serve,
    statistics,
    train,
    tune,
)
from consilience.errors import ConsilienceError

__all__ = ["app", "run"]

_INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="consilience",
    help="Turn many expert models into one better system, and prove it.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 the request was wrong.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("merge")(merge.merge)
app.command("plan")(plan.plan)
app.command("inspect")(inspect.inspect)
app.command("moe")(moe.moe)
app.add_typer(bundle.app)
app.command("extract")(extract.extract)
app.command("train")(train.train)
app.command("statistics")(statistics.statistics)
app.command("tune")(tune.tune)
app.command("pareto")(pareto.pareto)
app.command("index")(index.index)
app.command("search")(index.search)
app.command("serve")(serve.serve)
app.command("eval")(evaluate.evaluate)
app.command("demo")(demo.demo)
app.command("methods")(methods.methods)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"consilience {consilience.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        app(args=list(arguments), prog_name="consilience", standalone_mode=True)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            return _failed("interrupted; run the same command again to resume", "KeyboardInterrupt", 1, arguments)
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except ConsilienceError as error:
        return _failed(str(error), type(error).__name__, error.exit_code, arguments)
    except BrokenPipeError:
        return 1
    except OSError as error:  # a path of the request: what fails while working is a StorageError
        return _failed(f"{error.filename}: {error.strerror}", type(error).__name__, 2, arguments)
    return 0


def _failed(message: str, kind: str, code: int, arguments: Sequence[str]) -> int:
    if "--json" in arguments:
        print(json.dumps({"error": message, "kind": kind, "exit_code": code}, ensure_ascii=False))
    print(f"consilience: {message}", file=sys.stderr)
    return code
