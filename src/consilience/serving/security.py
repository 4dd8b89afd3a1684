"""Who may ask: bearer tokens, and addresses that need one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from consilience.errors import RequestError

__all__ = ["VARIABLE", "Tokens", "address_problems", "is_loopback", "local_name", "read_tokens", "token_problems"]

VARIABLE = "CONSILIENCE_TOKEN"
_SHORTEST = 16  # characters


def read_tokens(path: str | Path | None = None, *, variable: str = VARIABLE) -> tuple[str, ...]:
    """Return the tokens of a file (a line each; # begins a comment) or else of an environment variable.

    >>> read_tokens(variable="SURELY_NOT_SET")
    ()

    A token on a command line could be read by every user of the machine: there is no other way in. Raises RequestError
    for a file that cannot be read or holds none.
    """
    if path is None:
        given = os.environ.get(variable, "").strip()
        return (given,) if given else ()
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: the tokens cannot be read ({error}); a text file with a token a line") from error
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found:
        raise RequestError(f"{path}: no token in it; a text file with a token a line")
    return found


def token_problems(tokens: Iterable[str]) -> list[str]:
    """Return what is wrong with tokens, without showing them."""
    return [
        f"token number {place}: at least {_SHORTEST} visible ASCII characters, such as from `openssl rand -hex 32`"
        for place, token in enumerate(tokens, 1)
        if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token
    ]


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine only.

    >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def address_problems(host: str, tokens: Sequence[str]) -> list[str]:
    """Return why a server must not listen there."""
    if is_loopback(host) or tokens:
        return []
    return [
        f"{host or 'every address'} can be reached from other machines; give a token (variable {VARIABLE}, or a file), "
        "or listen on 127.0.0.1"
    ]


def local_name(host: str) -> bool:
    """Whether a Host header names this machine; web pages of others that point their name here do not.

    >>> local_name("127.0.0.1:8000"), local_name("[::1]:8000"), local_name("evil.example:8000")
    (True, True, False)
    """
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:[0-9]+)?", host)
    return found is not None and is_loopback(found[1])


class Tokens:
    """The tokens that open the server, kept as digests and compared in constant time.

    >>> tokens = Tokens(["correct-horse-battery"])
    >>> tokens.owner("Bearer correct-horse-battery") is not None, tokens.owner("Bearer correct")
    (True, None)
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, header: str | None) -> str | None:
        """Return a name for who holds the token of an Authorization header; None where it is not one of ours."""
        scheme, _, given = (header or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for place, known in enumerate(self._digests):  # all of them: the time says nothing about which
            if hmac.compare_digest(known, digest):
                found = f"token {place + 1}"
        return found if scheme.lower() == "bearer" else None
