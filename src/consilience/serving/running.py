"""Listening: uvicorn with our log, and an end that answers everything that was begun."""

from __future__ import annotations

import logging
import signal
import sys
from typing import TYPE_CHECKING

import uvicorn

from consilience.serving.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["run"]

_CONNECTIONS = 1024  # at the same time; beyond, 503
_GRACE = 5  # seconds beyond the longest request


def run(app: FastAPI, settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM: then no more connections, and requests in flight are answered.

    The log goes to standard error: a line per request with method, path, status and milliseconds.
    """
    _log_to_stderr()
    longest = max(settings.seconds, settings.write_seconds if settings.write else 0)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client could name any address, and have its rate
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=int(longest) + _GRACE,
    )
    for one in (signal.SIGINT, signal.SIGTERM):  # uvicorn's own stand before these, and give them the signal at the end
        signal.signal(one, _ended)
    uvicorn.Server(config).run()


def _ended(number: int, frame: object) -> None:
    """Let the process end by itself: everything is answered and closed."""


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("consilience.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addFilter(_seen_before)


def _seen_before(record: logging.LogRecord) -> bool:
    """Leave out the trace of an incident that is in the log already, under its id."""
    return not record.getMessage().startswith("Exception in ASGI application")
