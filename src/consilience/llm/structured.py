"""Structured answers from any server: the ladder json_schema, json_object, text with extraction, one repair, failure.

A server that refuses a format is asked with the next one; what it refused or ignored is remembered per model and base
URL. A reply that does not fit is sent back once with the reason. Anything but that (a lost connection, an empty reply,
a wrong key) ends the call at once.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from consilience.llm.errors import ServerError, StructureError
from consilience.llm.protocol import Message, Reply, Request, Usage
from consilience.llm.schema import NotFittingError, Schema

__all__ = ["RUNGS", "RungMemory", "structured_reply"]

RUNGS = ("json_schema", "json_object", "text")
_TEXT = 2
_REFUSALS = (400, 404, 415, 422, 500, 501)
_ABOUT_FORMAT = re.compile(r"response_format|json_schema|json_object|guided|grammar|structured output", re.IGNORECASE)


class RungMemory:
    """The highest rung that each server and model is known to take.

    >>> memory = RungMemory()
    >>> memory.lower("http://127.0.0.1:8000/v1 tiny", 1)
    >>> RUNGS[memory.first("http://127.0.0.1:8000/v1 tiny")], RUNGS[memory.first("another")]
    ('json_object', 'json_schema')
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rungs: dict[str, int] = {}

    def first(self, key: str) -> int:
        """Return the rung to begin with."""
        with self._lock:
            return self._rungs.get(key, 0)

    def lower(self, key: str, rung: int) -> None:
        """Remember that rungs above `rung` do not work."""
        with self._lock:
            self._rungs[key] = max(rung, self._rungs.get(key, 0))


def structured_reply(
    request: Request, schema: Schema, send: Callable[[Request], Reply], memory: RungMemory, key: str, rung: int = 0
) -> Reply:
    """Return a reply whose `parsed` fits the schema, with the rung and the number of calls; `send` makes one call.

    >>> replies = iter(["I think so.", '{"sure": true}'])
    >>> request = Request((Message("user", "Are you sure?"),))
    >>> schema = Schema({"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]})
    >>> reply = structured_reply(request, schema, lambda request: Reply(next(replies)), RungMemory(), "example")
    >>> reply.parsed, reply.rung, reply.calls
    ({'sure': True}, 'repair', 2)

    rung: the first one that the adapter can take. Raises StructureError with the text that does not fit.
    """
    rung = max(rung, memory.first(key))
    calls, usage = 0, Usage()
    while True:
        calls += 1
        try:
            reply = send(_shaped(request, schema, rung))
            break
        except ServerError as error:
            if rung == _TEXT or error.status not in _REFUSALS or not _ABOUT_FORMAT.search(str(error)):
                raise
            rung += 1
            memory.lower(key, rung)
    usage += reply.usage
    if reply.tool_calls:
        return replace(reply, calls=calls)
    try:
        value, extracted = schema.read(reply.text)
        return replace(reply, parsed=value, rung=RUNGS[_TEXT if extracted else rung], calls=calls)
    except NotFittingError as problem:
        if reply.finish == "length":
            raise StructureError(
                f"the answer was cut after {usage.completion_tokens} tokens and is no whole JSON; raise max_tokens; "
                f"it was {_short(reply.text)}",
                reply.text,
            ) from problem
        if not problem.found and rung < _TEXT:
            rung += 1  # it took the format and did not keep to it
            memory.lower(key, rung)
        asked = (
            f"That answer does not fit: {problem}. Answer again, with nothing but JSON that fits this JSON schema:\n"
            f"{json.dumps(schema.json)}"
        )
    messages = (*request.messages, reply.message(), Message("user", asked))
    repaired = send(request.with_messages(messages, _response_format(schema, rung)))
    try:
        value, _ = schema.read(repaired.text)
    except NotFittingError as problem:
        raise StructureError(
            f"no answer that fits the schema, after {calls + 1} calls: {problem}; the last answer was "
            f"{_short(repaired.text)}",
            repaired.text,
        ) from problem
    return replace(repaired, parsed=value, rung="repair", calls=calls + 1, usage=usage + repaired.usage)


def _short(text: str, most: int = 200) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")


def _response_format(schema: Schema, rung: int) -> Mapping[str, Any] | None:
    if rung == 0:
        given = {"name": schema.name, "schema": schema.json, "strict": schema.strict}
        return {"type": "json_schema", "json_schema": given}
    return {"type": "json_object"} if rung == 1 else None


def _shaped(request: Request, schema: Schema, rung: int) -> Request:
    """Return the request of a rung; below the first one the schema is told in the last message."""
    messages = request.messages
    if rung > 0:
        told = f"Answer with nothing but JSON that fits this JSON schema:\n{json.dumps(schema.json)}"
        last = messages[-1]
        if last.role == "user":
            messages = (*messages[:-1], replace(last, content=f"{last.content}\n\n{told}"))
        else:
            messages = (*messages, Message("user", told))
    return request.with_messages(messages, _response_format(schema, rung))
