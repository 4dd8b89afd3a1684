"""A server on loopback, in a thread or in a process of its own, and a plain client."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

VERB = "import typer; from consilience.cli.serve import serve; app = typer.Typer(); app.command()(serve); app()"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def content(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Client:
    port: int
    token: str | None = None

    def __call__(
        self, method: str, path: str, content: Any = None, *, raw: Any = None, seconds: float = 60, **headers: str
    ) -> Reply:
        """Send one request over a connection of its own."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if content is not None:
            raw = json.dumps(content).encode()
            given.setdefault("content-type", "application/json")
        if self.token:
            given.setdefault("authorization", f"Bearer {self.token}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, raw, given)
            answer = connection.getresponse()
            text = answer.read().decode()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, text)
        finally:
            connection.close()

    def search(self, *queries: str, **more: Any) -> Reply:
        return self("POST", "/search", {"queries": list(queries), **more})

    def ids(self, query: str, **more: Any) -> list[str]:
        reply = self.search(query, **more)
        assert reply.status == 200, reply.text
        return [hit["id"] for hit in reply.content["answers"][0]["hits"]]


@contextmanager
def served(app: FastAPI, token: str | None = None) -> Iterator[Client]:
    """Run an application in a thread, on a port that is free."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield Client(server.servers[0].sockets[0].getsockname()[1], token)
    finally:
        server.should_exit = True
        thread.join(30)


@dataclass
class Process:
    process: subprocess.Popen[str]
    client: Client
    lines: list[str]
    reading: threading.Thread

    def ended(self, seconds: float = 60) -> int:
        code = self.process.wait(seconds)
        self.reading.join(5)
        return code


@contextmanager
def process(index: Path, *options: str, token: str | None = None) -> Iterator[Process]:
    """Run the verb in a process of its own, on a port that is free."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("CONSILIENCE_TOKEN", None)
    if token:
        environment["CONSILIENCE_TOKEN"] = token
    command = [sys.executable, "-c", VERB, str(index), "--port", "0", *options]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines: list[str] = []
    port = threading.Event()

    def read() -> None:
        assert child.stderr is not None
        for line in child.stderr:
            lines.append(line.rstrip())
            if "Uvicorn running" in line:
                port.set()
        port.set()

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    try:
        assert port.wait(120)
        found = next((re.search(r"http://[^:]+:(\d+) ", line) for line in lines if "Uvicorn running" in line), None)
        assert found, "\n".join(lines)
        yield Process(child, Client(int(found[1]), token), lines, reading)
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(10)
        reading.join(5)


def raw_exchange(port: int, *parts: bytes, pause: float = 0.0, seconds: float = 10.0) -> bytes:
    """Send bytes as they are and return what comes back until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while some := connection.recv(65536):
                received += some
        except (ConnectionError, TimeoutError):
            pass
        return received
