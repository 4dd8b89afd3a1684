"""`consilience serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.output import note
from consilience.serving.settings import Settings

_USUAL = Settings()


def serve(
    folder: Annotated[str, typer.Argument(metavar="INDEX", help="Folder of the index, or postgresql://…?index=NAME.")],
    host: Annotated[str, typer.Option(help="Address to listen on; another than this machine's own needs a token.")] = (
        _USUAL.host
    ),
    port: Annotated[int, typer.Option(help="Port; 0: one that is free.")] = _USUAL.port,
    write: Annotated[bool, typer.Option("--write", help="Documents can be written and deleted.")] = _USUAL.write,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token a line (default: the variable CONSILIENCE_TOKEN).")
    ] = None,
    workers: Annotated[int, typer.Option(help="Searches at the same time.")] = _USUAL.workers,
    waiting: Annotated[
        int, typer.Option(help="Searches that may wait; beyond, clients are told to come back.")
    ] = _USUAL.waiting,
    seconds: Annotated[float, typer.Option(help="Time limit of a search.")] = _USUAL.seconds,
    body_bytes: Annotated[int, typer.Option(help="Largest request; of documents: --write-bytes.")] = _USUAL.body_bytes,
    write_bytes: Annotated[int, typer.Option(help="Largest request with documents.")] = _USUAL.write_bytes,
    rate: Annotated[
        float, typer.Option(help="Requests a second of a client, on average; 0: any number.")
    ] = _USUAL.rate,
    burst: Annotated[int, typer.Option(help="Requests of a client at once.")] = _USUAL.burst,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: the best there is).")] = None,
) -> None:
    """Serve an index over HTTP until Ctrl-C or SIGTERM; what was begun is answered."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        from consilience.errors import MissingExtraError

        raise MissingExtraError(str(error.name), "serve") from None
    from consilience.retrieval.index import Index
    from consilience.serving.app import create_app
    from consilience.serving.running import run
    from consilience.serving.security import read_tokens

    settings = Settings(
        host=host,
        port=port,
        tokens=read_tokens(token_file),
        write=write,
        workers=workers,
        waiting=waiting,
        seconds=seconds,
        body_bytes=body_bytes,
        write_bytes=write_bytes,
        rate=rate,
        burst=burst,
    )
    with Index.open(folder, write=write, device=device) as index:
        app = create_app(index, settings)
        note(f"{len(index.stores)} documents at http://{host}:{port} (Ctrl-C ends)")
        run(app, settings)
