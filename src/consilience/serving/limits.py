"""Limits of what a client may send: bytes of a body, before anything is parsed, and requests a second."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["BodyError", "Buckets", "drain", "read_body"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_DRAINED = 8_000_000  # bytes that are read and thrown away, so that a client that sends gets to read the answer
_PATIENCE = 2.0  # seconds for that
_CLIENTS = 10_000  # whose rates are remembered


class BodyError(Exception):
    """A body that is refused: an HTTP status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_body(receive: Receive, declared: str | None, most: int, seconds: float) -> bytes | None:
    """Read a body of at most `most` bytes within `seconds`; None where the client has gone.

    declared: the Content-Length header. Raises BodyError: 413 too large, 408 too slow, 400 not a length.
    """
    if declared is not None and not (declared.isascii() and declared.isdigit()):
        raise BodyError(400, "Content-Length is not a number")
    if declared is not None and int(declared) > most:
        await drain(receive)
        raise BodyError(413, f"the body has {declared} bytes; at most {most}. Send it in several requests")
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                more = message.get("more_body", False)
                if size > most:
                    break
    except TimeoutError:
        raise BodyError(408, f"the body did not arrive within {seconds:g} s") from None
    if size > most:
        parts.clear()
        if more:
            await drain(receive)
        raise BodyError(413, f"the body has more than {most} bytes. Send it in several requests")
    return b"".join(parts)


async def drain(receive: Receive) -> None:
    """Throw away the rest of a body, as far as it comes soon."""
    left = _DRAINED
    try:
        async with asyncio.timeout(_PATIENCE):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


class Buckets:
    """A token bucket for every client: `rate` requests a second on average, `burst` at once.

    >>> now = [0.0]
    >>> buckets = Buckets(2.0, 1, clock=lambda: now[0])
    >>> buckets.wait("ann"), buckets.wait("ann"), buckets.wait("bob")
    (0.0, 0.5, 0.0)
    >>> now[0] = 0.5
    >>> buckets.wait("ann")
    0.0
    """

    def __init__(self, rate: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self._clock = rate, burst, clock
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Take a request from a client's bucket: 0.0, or the seconds after which there is one again."""
        if not self.rate:
            return 0.0
        now = self._clock()
        tokens, since = self._kept.pop(client, (float(self.burst), now))
        tokens = min(self.burst, tokens + (now - since) * self.rate)
        allowed = tokens >= 1
        self._kept[client] = (tokens - allowed, now)
        if len(self._kept) > _CLIENTS:
            self._kept.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self.rate
