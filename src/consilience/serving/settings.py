"""How an index is served: where, to whom, and within which limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from consilience.errors import Problems, RequestError
from consilience.serving.security import address_problems, token_problems

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """Where and how an index is served.

    >>> Settings().host
    '127.0.0.1'
    >>> Settings(host="0.0.0.0")
    Traceback (most recent call last):
    ...
    consilience.errors.RequestError: serve: 0.0.0.0 can be reached from other machines; give a token...

    host, port: where the server listens; 0: a port that is free. tokens: any of them opens every door; none: whoever is
    on this machine. write: documents can be written and deleted. workers: searches at the same time. waiting: searches
    that may wait for them. together: queries of several requests that are encoded in one call. seconds: for a search;
    write_seconds: for a write. body_bytes, write_bytes: of a request. rate: requests a second of a client, on average;
    0: any number. burst: how many it may send at once. Raises RequestError naming all that is wrong.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: tuple[str, ...] = field(default=(), repr=False)
    write: bool = False
    workers: int = 1
    waiting: int = 256
    together: int = 32
    seconds: float = 30.0
    write_seconds: float = 600.0
    body_bytes: int = 1_000_000
    write_bytes: int = 32_000_000
    rate: float = 200.0
    burst: int = 400

    def __post_init__(self) -> None:
        problems = Problems()
        problems.extend(address_problems(self.host, self.tokens))
        problems.extend(token_problems(self.tokens))
        if not 0 <= self.port < 65_536:
            problems.add(f"port {self.port}: 0 to 65535")
        for name in ("workers", "waiting", "together", "body_bytes", "write_bytes", "burst"):
            if getattr(self, name) < 1:
                problems.add(f"{name} {getattr(self, name)}: at least 1")
        for name in ("seconds", "write_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                problems.add(f"{name} {getattr(self, name)}: more than 0")
        if not 0 <= self.rate < math.inf:
            problems.add(f"rate {self.rate}: 0 (any number) or more")
        problems.raise_if_any(RequestError, "serve")
