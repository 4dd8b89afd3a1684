"""A server on 127.0.0.1 that speaks the wire format of chat completions, well or badly, as a handler says."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Answer", "Call", "Loopback", "completion", "events_of", "refusal", "serving", "streamed", "texts"]


@dataclass(frozen=True)
class Call:
    """A request as it came over the socket."""

    method: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What goes back. cut: how many bytes of it are sent before the connection is closed."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    delay: float = 0.0
    cut: int | None = None
    pieces: tuple[bytes, ...] | None = None  # written one by one, chunked
    unfinished: bool = False  # the pieces end without the end of the response


Handler = Callable[[Call], Answer]


def completion(text: str | None = "ok", *, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    """Return a chat completion with one choice; more: fields of the message, or usage, logprobs."""
    usage = more.pop("usage", {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10})
    choice = {"index": 0, "finish_reason": finish, "logprobs": more.pop("logprobs", None)}
    choice["message"] = {"role": "assistant", "content": text, **more}
    found = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}
    return found | ({} if usage is None else {"usage": usage})


def refusal(status: int, message: str, **headers: str) -> Answer:
    error = {"error": {"message": message, "type": "invalid_request_error", "code": None}}
    return Answer(error, status, {name.replace("_", "-"): value for name, value in headers.items()})


def events_of(pieces: Sequence[str], *, finish: str | None = "stop", usage: bool = True) -> list[bytes]:
    """Return the server-sent events of a streamed text."""
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    chunks += [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    if finish is not None:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if usage:
        chunks.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}})
    events = [b"data: " + json.dumps(head | chunk, ensure_ascii=False).encode() + b"\n\n" for chunk in chunks]
    return [*events, b"data: [DONE]\n\n"]


def streamed(events: Sequence[bytes], *, unfinished: bool = False) -> Answer:
    return Answer(content_type="text/event-stream", pieces=tuple(events), unfinished=unfinished)


def texts(reply: Callable[[list[dict[str, Any]], dict[str, Any]], str]) -> Handler:
    """Return a handler of chat completions, streamed where asked, from a function of (messages, body)."""

    def handle(call: Call) -> Answer:
        text = reply(call.body["messages"], call.body)
        if call.body.get("stream"):
            return streamed(events_of([text[start : start + 4] for start in range(0, len(text), 4)]))
        return Answer(completion(text))

    return handle


class Loopback:
    """The running server: its `url`, the `calls` it got, and how many were under way at once."""

    def __init__(self, handler: Handler) -> None:
        self.calls: list[Call] = []
        self.failures: list[str] = []  # errors of the handler itself
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        outer = self

        class Speaking(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._respond({})

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._respond(json.loads(data))

            def _respond(self, body: dict[str, Any]) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = Call(self.command, self.path, body, headers)
                with outer._lock:
                    outer.calls.append(call)
                    outer._in_flight += 1
                    outer.most_in_flight = max(outer.most_in_flight, outer._in_flight)
                try:
                    answer = handler(call)
                    time.sleep(answer.delay)
                    outer._count_down()
                    self._write(answer)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def _write(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in ({"Content-Type": answer.content_type} | answer.headers).items():
                    self.send_header(name, value)
                if answer.pieces is not None:
                    self._write_pieces(answer)
                    return
                data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: answer.cut])
                self.close_connection = self.close_connection or answer.cut is not None

            def _write_pieces(self, answer: Answer) -> None:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for piece in answer.pieces or ():
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                    self.wfile.flush()
                if answer.unfinished:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                error = sys.exc_info()[1]
                if not isinstance(error, ConnectionError):  # clients that leave are no failure
                    outer.failures.append(repr(error))

        self._server = Server(("127.0.0.1", 0), Speaking)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def _count_down(self) -> None:
        with self._lock:
            self._in_flight -= 1

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [call.body for call in self.calls]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextmanager
def serving(handler: Handler) -> Iterator[Loopback]:
    server = Loopback(handler)
    try:
        yield server
    finally:
        server.close()
    assert not server.failures
    assert not getattr(handler, "unexpected", []), "the script has no reply for these"
