"""The protocol of language models, and the plain data it speaks: messages in, replies out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from consilience.errors import RequestError

__all__ = [
    "LLM",
    "Capabilities",
    "Chunk",
    "Conversation",
    "Message",
    "Reply",
    "Request",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "Usage",
    "as_messages",
]

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for.

    >>> ToolCall.from_dict(ToolCall("call_1", "add", {"a": 1}).to_dict()).arguments
    {'a': 1}
    """

    id: str
    name: str
    arguments: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the wire form, where arguments are JSON text."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ToolCall:
        """Read the wire form; ValueError where the arguments are not a JSON object."""
        function = record["function"]
        given = function.get("arguments") or {}
        arguments = json.loads(given) if isinstance(given, str) else given
        if not isinstance(arguments, dict):
            raise ValueError(f"arguments of the tool {function['name']!r} are {given!r}, not a JSON object")
        return cls(str(record.get("id") or ""), str(function["name"]), arguments)


@dataclass(frozen=True)
class Tool:
    """A function the model may ask for: parameters is a JSON schema of an object.

    >>> Tool("now", "The time of day.").to_dict()["function"]["name"]
    'now'
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def to_dict(self) -> dict[str, Any]:
        """Return the wire form."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Tool:
        """Read the wire form."""
        function = record["function"]
        return cls(function["name"], function.get("description", ""), function.get("parameters", {}))


@dataclass(frozen=True)
class Message:
    """One turn: role is system, user, assistant or tool.

    >>> Message("user", "Hello").to_dict()
    {'role': 'user', 'content': 'Hello'}

    A tool's result has the `tool_call_id` it answers; an assistant's turn may hold tool calls.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RequestError(f"a message of role {self.role!r}; roles are {', '.join(ROLES)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the wire form."""
        record: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            record["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            record["tool_call_id"] = self.tool_call_id
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Message:
        """Read the wire form."""
        if not isinstance(record, Mapping) or not isinstance(record.get("role"), str):
            raise RequestError(
                f"{record!r} is no message; use Message(role, content) or {{'role': ..., 'content': ...}}"
            )
        calls = tuple(ToolCall.from_dict(call) for call in record.get("tool_calls") or ())
        return cls(record["role"], str(record.get("content") or ""), calls, record.get("tool_call_id"))


@dataclass(frozen=True)
class Usage:
    """Tokens of prompt and answer; `estimated` where the server did not count them.

    >>> Usage(3, 4) + Usage(1, 1, estimated=True)
    Usage(prompt_tokens=4, completion_tokens=5, estimated=True)
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.estimated or other.estimated,
        )

    @property
    def total(self) -> int:
        """Tokens in all."""
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Usage:
        """Read plain data."""
        return cls(record["prompt_tokens"], record["completion_tokens"], record.get("estimated", False))


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural log-probability, and those of the likeliest tokens at its place.

    >>> TokenLogprob("a", -0.1, {"a": -0.1, "b": -2.4}).top["b"]
    -2.4
    """

    token: str
    logprob: float
    top: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TokenLogprob:
        """Read plain data."""
        return cls(record["token"], record["logprob"], dict(record.get("top", {})))


@dataclass(frozen=True)
class Reply:
    """What came back.

    >>> Reply.from_dict(Reply("4", finish="stop", usage=Usage(5, 1)).to_dict()).usage.total
    6

    text: "" only beside tool calls or behind a stop sequence. parsed: the checked value where a schema was given.
    finish: stop, length, tool_calls or content_filter. logprobs: one per token of the answer, or None. rung: how a
    structured answer was got (json_schema, json_object, text, repair). calls: how many calls it took. alternatives:
    the answers after the first where n > 1, in the server's order. raw: what the server sent.
    """

    text: str
    parsed: Any = None
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"
    logprobs: tuple[TokenLogprob, ...] | None = None
    usage: Usage = Usage()
    rung: str | None = None
    calls: int = 1
    alternatives: tuple[Reply, ...] = ()
    raw: dict[str, Any] | None = None

    def message(self) -> Message:
        """Return the reply as a turn of the conversation."""
        return Message("assistant", self.text, self.tool_calls)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, without `parsed`, which need not be plain."""
        return {
            "text": self.text,
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "finish": self.finish,
            "logprobs": None if self.logprobs is None else [token.to_dict() for token in self.logprobs],
            "usage": self.usage.to_dict(),
            "rung": self.rung,
            "calls": self.calls,
            "alternatives": [other.to_dict() for other in self.alternatives],
            "raw": self.raw,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Reply:
        """Read plain data."""
        logprobs = record.get("logprobs")
        return cls(
            record["text"],
            tool_calls=tuple(ToolCall.from_dict(call) for call in record.get("tool_calls", ())),
            finish=record.get("finish", "stop"),
            logprobs=None if logprobs is None else tuple(TokenLogprob.from_dict(token) for token in logprobs),
            usage=Usage.from_dict(record.get("usage", {"prompt_tokens": 0, "completion_tokens": 0})),
            rung=record.get("rung"),
            calls=record.get("calls", 1),
            alternatives=tuple(cls.from_dict(other) for other in record.get("alternatives", ())),
            raw=record.get("raw"),
        )


@dataclass(frozen=True)
class Chunk:
    """A piece of streamed text; the last one is empty and carries the whole `reply`.

    >>> Chunk("Hel").reply is None
    True
    """

    text: str
    reply: Reply | None = None


@dataclass(frozen=True)
class Capabilities:
    """What an adapter can do; `context` in tokens, None where it is not known.

    >>> Capabilities(score=True).json_schema
    False
    """

    logprobs: bool = False
    score: bool = False
    tools: bool = False
    json_schema: bool = False
    json_object: bool = False
    context: int | None = None


@dataclass(frozen=True)
class Request:
    """One call as plain data: what adapters receive. None leaves a setting to the model.

    >>> Request((Message("user", "Hello"),), max_tokens=5).to_dict()
    {'messages': [{'role': 'user', 'content': 'Hello'}], 'max_tokens': 5}

    top_logprobs: None for none, else how many beside the token's own, 0 to 20. response_format: the wire form.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    max_tokens: int | None = None
    response_format: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, without what is not set."""
        record: dict[str, Any] = {"messages": [message.to_dict() for message in self.messages]}
        if self.tools:
            record["tools"] = [tool.to_dict() for tool in self.tools]
        if self.n != 1:
            record["n"] = self.n
        if self.stop:
            record["stop"] = list(self.stop)
        for name in ("seed", "temperature", "top_p", "top_logprobs", "max_tokens", "response_format"):
            if getattr(self, name) is not None:
                record[name] = getattr(self, name)
        return record

    def with_messages(self, messages: Sequence[Message], response_format: Mapping[str, Any] | None) -> Request:
        """Return the request with other messages and another format of the response."""
        return replace(self, messages=tuple(messages), response_format=response_format)


Conversation = str | Sequence[Message | Mapping[str, Any]]


def as_messages(conversation: Conversation) -> tuple[Message, ...]:
    """Return messages: a string is one user's turn; dicts are read as the wire form.

    >>> as_messages("Hello")
    (Message(role='user', content='Hello', tool_calls=(), tool_call_id=None),)
    """
    if isinstance(conversation, str):
        return (Message("user", conversation),)
    messages = tuple(turn if isinstance(turn, Message) else Message.from_dict(turn) for turn in conversation)
    if not messages:
        raise RequestError("no messages; give a string or a list with at least one message")
    return messages


@runtime_checkable
class LLM(Protocol):
    """A language model, wherever it runs.

    >>> from consilience.llm import FunctionLLM
    >>> model = FunctionLLM(lambda messages: messages[-1].content.upper())
    >>> isinstance(model, LLM), model.generate("hello").text
    (True, 'HELLO')
    """

    name: str

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        ...

    def generate(
        self,
        messages: Conversation,
        *,
        schema: Any = None,
        tools: Sequence[Tool] | None = None,
        n: int = 1,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        logprobs: bool | int = False,
        max_tokens: int | None = None,
    ) -> Reply:
        """Return the answer to messages.

        schema: a JSON schema or a type that pydantic knows; `Reply.parsed` is checked against it. logprobs: True, or
        how many of the likeliest tokens at each place. None leaves a setting to the model.
        """
        ...

    def stream(
        self,
        messages: Conversation,
        *,
        tools: Sequence[Tool] | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
    ) -> Iterator[Chunk]:
        """Yield the answer as it comes; the last chunk carries the whole reply."""
        ...

    def score(self, prompt: str, continuation: str) -> tuple[TokenLogprob, ...]:
        """Return the log-probability of each token of a continuation, given the prompt."""
        ...
