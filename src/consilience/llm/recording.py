"""Record what a model answers, and replay it anywhere without the model."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from consilience.core.atomic import storage_error
from consilience.core.hashing import fingerprint
from consilience.errors import RequestError
from consilience.llm.base import BaseLLM
from consilience.llm.errors import ReplayError, ServerError
from consilience.llm.protocol import Capabilities, Chunk, Reply, Request, TokenLogprob

__all__ = ["RecordingLLM", "ReplayLLM"]

_FORMAT, _VERSION = "consilience/llm-recording", 1


class RecordingLLM(BaseLLM):
    """A model whose calls are written down, one JSON line each, as they end.

    >>> import tempfile
    >>> from consilience.llm.function import FunctionLLM
    >>> file = Path(tempfile.mkdtemp()) / "calls.jsonl"
    >>> with_model = RecordingLLM(FunctionLLM(lambda messages: "four", name="sums"), file).generate("2 + 2?")
    >>> ReplayLLM(file).generate("2 + 2?").text
    'four'

    The file must not exist. It holds requests, replies and refusals of the server, never keys or headers.
    """

    def __init__(self, inner: BaseLLM, path: str | Path) -> None:
        super().__init__(inner.name, counter=inner.counter)  # the context is the inner model's to check
        self.inner = inner
        self.path = Path(path)
        self._lock = threading.Lock()
        if self.path.exists():
            raise RequestError(f"{self.path}: exists; record into a new file, or replay it with ReplayLLM")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        can = asdict(inner.capabilities)
        self._write({"format": _FORMAT, "version": _VERSION, "model": inner.identity, "name": inner.name, "can": can})

    @property
    def identity(self) -> dict[str, Any]:
        """That of the model."""
        return self.inner.identity

    @property
    def capabilities(self) -> Capabilities:
        """Those of the model."""
        return self.inner.capabilities

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with self._lock:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:
                raise storage_error(self.path, error) from error

    def _send(self, request: Request) -> Reply:
        asked = {"call": "generate", "request": request.to_dict()}
        try:
            reply = self.inner.complete(request)
        except ServerError as error:
            if error.status is not None:  # an answer of the server, which the replayed program has to see too
                self._write({**asked, "error": {"message": str(error), "status": error.status}})
            raise
        self._write({**asked, "reply": reply.to_dict()})
        return reply

    def _stream(self, request: Request) -> Iterator[Chunk]:
        pieces: list[str] = []
        for chunk in self.inner._streamed(request):
            if chunk.reply is None:
                pieces.append(chunk.text)
            else:
                asked = {"call": "stream", "request": request.to_dict()}
                self._write({**asked, "pieces": pieces, "reply": chunk.reply.to_dict()})
            yield chunk

    def _score(self, prompt: str, continuation: str) -> tuple[TokenLogprob, ...]:
        scores = self.inner.score(prompt, continuation)
        asked = {"call": "score", "request": {"prompt": prompt, "continuation": continuation}}
        self._write({**asked, "scores": [token.to_dict() for token in scores]})
        return scores


class ReplayLLM(BaseLLM):
    """A recording in place of its model; a call that it does not hold is a ReplayError, never a guess.

    >>> import tempfile
    >>> from consilience.llm.function import FunctionLLM
    >>> file = Path(tempfile.mkdtemp()) / "calls.jsonl"
    >>> model = RecordingLLM(FunctionLLM(str), file)
    >>> ReplayLLM(file).generate("never asked")
    Traceback (most recent call last):
    ...
    consilience.llm.errors.ReplayError: ...calls.jsonl: no generate call with this request...

    Equal requests get their replies in the order of the recording, each once. Settings: see `BaseLLM`.
    """

    def __init__(self, path: str | Path, **settings: Any) -> None:
        self.path = Path(path)
        head, calls = _read(self.path)
        super().__init__(head["name"], **settings)
        self._head = head
        self._lock = threading.Lock()
        self._calls: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for call in calls:
            self._calls[fingerprint([call["call"], call["request"]])].append(call)

    @property
    def identity(self) -> dict[str, Any]:
        """That of the recorded model."""
        return dict(self._head["model"])

    @property
    def capabilities(self) -> Capabilities:
        """Those of the recorded model."""
        return Capabilities(**self._head["can"])

    def _next(self, kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            held = self._calls.get(fingerprint([kind, request]))
            if held:
                return held.pop(0)
        why = "is left: all that were recorded have been replayed" if held is not None else "was recorded"
        shown = json.dumps(request, ensure_ascii=False)
        raise ReplayError(f"{self.path}: no {kind} call with this request {why}; record again: {shown[:300]}")

    def _send(self, request: Request) -> Reply:
        call = self._next("generate", request.to_dict())
        if "error" in call:
            raise ServerError(call["error"]["message"], call["error"]["status"])
        return Reply.from_dict(call["reply"])

    def _stream(self, request: Request) -> Iterator[Chunk]:
        call = self._next("stream", request.to_dict())
        for piece in call["pieces"]:
            yield Chunk(piece)
        yield Chunk("", Reply.from_dict(call["reply"]))

    def _score(self, prompt: str, continuation: str) -> tuple[TokenLogprob, ...]:
        call = self._next("score", {"prompt": prompt, "continuation": continuation})
        return tuple(TokenLogprob.from_dict(token) for token in call["scores"])


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise RequestError(f"{path}: no such file; expected a recording, made by RecordingLLM") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise RequestError(
                f"{path}: line {number} is no JSON ({error}); the recording was cut or changed"
            ) from error
    if not records or not isinstance(records[0], dict) or records[0].get("format") != _FORMAT:
        raise RequestError(f"{path}: not a recording of a language model; its first line has to say {_FORMAT!r}")
    if records[0]["version"] > _VERSION:
        raise RequestError(f"{path}: format version {records[0]['version']}; this program reads up to {_VERSION}")
    return records[0], records[1:]
