"""The door: before a request is parsed it is measured, recognised and counted; afterwards it is a line in the log."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from consilience.serving.limits import BodyError, Buckets, Message, Receive, drain, read_body
from consilience.serving.metrics import Metrics
from consilience.serving.security import Tokens, is_loopback, local_name
from consilience.serving.settings import Settings

__all__ = ["Guard", "error_body"]

log = logging.getLogger("consilience.serving")

Send = Callable[[Message], Awaitable[None]]
Refusal = tuple[int, str, str, dict[str, str]]
Application = Callable[[Any, Receive, Send], Awaitable[None]]

_OPEN = ("/health", "/health/live", "/health/ready")
_BODY_SECONDS = 30.0


def error_body(message: str, kind: str, **more: str) -> bytes:
    """Return an error as the body of an answer; what cannot be encoded is escaped."""
    text = json.dumps({"error": message, "kind": kind, **more}, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


class Guard:
    """Middleware around the application: token, host, rate and size, in this order, then the log and the counts."""

    def __init__(self, app: Application, *, settings: Settings, metrics: Metrics) -> None:
        self.app, self._settings, self._metrics = app, settings, metrics
        self._tokens = Tokens(settings.tokens)
        self._local = is_loopback(settings.host) and not settings.tokens
        self._buckets = Buckets(settings.rate, settings.burst)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request that is refused, hand on any other."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            status = await self._answered(scope, receive, counted) or status
        finally:
            self._metrics.in_flight.dec()
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(method, route, status, seconds)
            path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
            log.info("%s %s %d %.1f ms", method, path[:200], status, 1000 * seconds)

    async def _answered(self, scope: Any, receive: Receive, send: Send) -> int | None:
        """Answer; returns the status where nobody was left to answer."""
        headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"])}
        if refusal := self._refusal(scope, headers):
            if b"transfer-encoding" in headers or headers.get(b"content-length", "0") != "0":
                await drain(receive)
            await refuse(send, *refusal)
            return None
        writing = scope["path"] == "/documents" and self._settings.write
        most = self._settings.write_bytes if writing else self._settings.body_bytes
        try:
            body = await read_body(receive, headers.get(b"content-length"), most, _BODY_SECONDS)
        except BodyError as error:
            await refuse(send, error.status, str(error), "RequestError", {})
            return None
        if body is None:
            return 499  # the client went before it had sent everything
        await self.app(scope, _replay(body, receive), send)
        return None

    def _refusal(self, scope: Any, headers: dict[bytes, str]) -> Refusal | None:
        """Return why a request is not read."""
        if scope["path"] not in _OPEN:
            client = (scope.get("client") or ("unknown",))[0]
            owner = self._tokens.owner(headers.get(b"authorization")) if self._tokens else client
            if wait := self._buckets.wait(owner or client):
                message = f"more than {self._settings.rate:g} requests a second; wait {wait:.2f} s"
                return 429, message, "RateLimit", {"retry-after": str(math.ceil(wait))}
            if owner is None:
                message = "a token is needed: send the header 'Authorization: Bearer TOKEN'"
                return 401, message, "Unauthorised", {"www-authenticate": "Bearer"}
        if self._local and not local_name(headers.get(b"host", "")):
            return 400, "the Host header is of another machine; use 127.0.0.1 or localhost", "RequestError", {}
        return None


_METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE")  # counted by name


async def refuse(send: Send, status: int, message: str, kind: str, headers: dict[str, str]) -> None:
    """Answer without having read what was sent; the connection ends with it."""
    body = error_body(message, kind)
    given = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in (given | headers).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read, and then what the connection says."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
