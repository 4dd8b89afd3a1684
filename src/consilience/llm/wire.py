"""The wire format of chat completions: requests out, replies and streams in, whatever servers leave out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from consilience.llm.errors import LLMError, ServerError
from consilience.llm.protocol import Reply, Request, TokenLogprob, ToolCall, Usage

__all__ = ["StreamedReply", "chat_body", "read_reply", "read_scores"]


def chat_body(request: Request, model: str, *, length_name: str = "max_tokens") -> dict[str, Any]:
    """Return the body of a chat completion; what is not set is not sent.

    >>> from consilience.llm.protocol import Message
    >>> chat_body(Request((Message("user", "Hello"),), top_logprobs=0), "tiny")
    {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'Hello'}], 'logprobs': True}
    """
    body = {"model": model, **request.to_dict()}
    if (limit := body.pop("max_tokens", None)) is not None:
        body[length_name] = limit
    if request.top_logprobs is not None:
        body["logprobs"] = True
        if not request.top_logprobs:
            del body["top_logprobs"]
    return body


def read_reply(record: Mapping[str, Any], name: str) -> Reply:
    """Return the Reply of a chat completion; choices are put in the order of their index.

    >>> read_reply({"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]}, "tiny").text
    '4'

    Raises LLMError where there are no choices or a tool's arguments are no JSON.
    """
    choices = record.get("choices")
    if not isinstance(choices, list) or not choices:
        raise LLMError(f"{name}: the server's reply has no choices: {str(dict(record))[:300]}")
    ordered = sorted(enumerate(choices), key=lambda item: (item[1].get("index", item[0]), item[0]))
    usage = _usage(record.get("usage"))
    first, *others = [_choice(choice, name) for _, choice in ordered]
    return replace(first, usage=usage, alternatives=tuple(others), raw=dict(record))


def _usage(record: Any) -> Usage:
    if not isinstance(record, Mapping):
        return Usage()
    return Usage(int(record.get("prompt_tokens") or 0), int(record.get("completion_tokens") or 0))


def _choice(choice: Mapping[str, Any], name: str) -> Reply:
    message = choice.get("message") or {}
    calls = _tool_calls(message.get("tool_calls") or [], name)
    finish = choice.get("finish_reason") or ("tool_calls" if calls else "stop")
    return Reply(_text(message.get("content")), tool_calls=calls, finish=finish, logprobs=_logprobs(choice))


def _text(content: Any) -> str:
    if isinstance(content, list):  # parts, of which some servers make text
        return "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    return content or ""


def _logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...] | None:
    given = (choice.get("logprobs") or {}).get("content")
    if given is None:
        return None
    return tuple(
        TokenLogprob(
            token["token"],
            float(token["logprob"]),
            {other["token"]: float(other["logprob"]) for other in token.get("top_logprobs") or ()},
        )
        for token in given
    )


def _tool_calls(records: list[Mapping[str, Any]], name: str) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    taken: set[str] = set()
    for place, record in enumerate(records):
        try:
            call = ToolCall.from_dict(record)
        except (ValueError, KeyError, TypeError) as error:
            raise LLMError(f"{name}: tool call {place} cannot be read ({error}): {str(record)[:300]}") from error
        wanted = call.id or f"call_{place}"
        identity, number = wanted, 2
        while identity in taken:  # some servers give the same id twice
            identity, number = f"{wanted}-{number}", number + 1
        taken.add(identity)
        calls.append(ToolCall(identity, call.name, call.arguments))
    return tuple(calls)


class StreamedReply:
    """Puts a reply together from the chunks of a stream.

    >>> reply = StreamedReply()
    >>> [reply.add({"choices": [{"delta": {"content": text}}]}) for text in ("Hel", "lo")]
    ['Hel', 'lo']
    >>> _ = reply.add({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    >>> reply.ended, reply.reply("tiny").text
    (True, 'Hello')
    """

    def __init__(self) -> None:
        self._text = ""
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish: str | None = None
        self._usage: Any = None

    @property
    def ended(self) -> bool:
        """Whether the server said why it stopped."""
        return self._finish is not None

    def add(self, chunk: Mapping[str, Any]) -> str:
        """Take one chunk and return its text."""
        if chunk.get("error"):
            error = chunk["error"]
            raise ServerError(
                f"the server ended the stream: {error.get('message') if isinstance(error, dict) else error}"
            )
        self._usage = chunk.get("usage") or self._usage
        text = ""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text += _text(delta.get("content"))
            for place, call in enumerate(delta.get("tool_calls") or ()):
                self._add_call(call.get("index", place), call)
            self._finish = choice.get("finish_reason") or self._finish
        self._text += text
        return text

    def _add_call(self, index: int, delta: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(index, {"id": "", "function": {"name": "", "arguments": ""}})
        call["id"] = delta.get("id") or call["id"]
        function = delta.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    def reply(self, name: str) -> Reply:
        """Return the whole reply."""
        message = {"content": self._text, "tool_calls": [self._calls[index] for index in sorted(self._calls)]}
        record = {"choices": [{"message": message, "finish_reason": self._finish}], "usage": self._usage}
        return read_reply(record, name)


def read_scores(record: Mapping[str, Any], prompt: str, name: str) -> tuple[TokenLogprob, ...]:
    """Return the tokens of an echoed completion that reach beyond the prompt, with their log-probabilities.

    >>> echoed = {"tokens": ["a", "b"], "token_logprobs": [None, -0.5], "text_offset": [0, 1]}
    >>> read_scores({"choices": [{"text": "ab", "logprobs": echoed}]}, "a", "tiny")
    (TokenLogprob(token='b', logprob=-0.5, top={}),)

    Raises LLMError where the server did not echo the prompt with log-probabilities.
    """
    choices = record.get("choices") or [{}]
    given = choices[0].get("logprobs") or {}
    tokens, values = given.get("tokens"), given.get("token_logprobs")
    if not tokens or values is None or not str(choices[0].get("text") or "").startswith(prompt):
        raise LLMError(
            f"{name}: the server does not echo prompts with log-probabilities on /completions; score needs it"
        )
    offsets = given.get("text_offset")
    if offsets is None:
        offsets = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
    scores = [
        TokenLogprob(token, float(value))
        for token, value, start in zip(tokens, values, offsets, strict=True)
        if start + len(token) > len(prompt) and value is not None
    ]
    if not scores:
        raise LLMError(f"{name}: the server gave no log-probability for the continuation")
    return tuple(scores)
