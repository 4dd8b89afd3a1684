"""All tests here: sockets go to this machine only, nothing of the environment names a server or a key."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.llm.server import Handler, Loopback, serving


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert ipaddress.ip_address(address[0]).is_loopback, f"a call to {address} leaves this machine"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):  # nobody listens there
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], Loopback]]:
    with ExitStack() as stack:
        yield lambda handler: stack.enter_context(serving(handler))
