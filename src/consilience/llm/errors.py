"""What can go wrong between a question and a usable answer.

ConsilienceError
├── RequestError
│   ├── ContextError         messages and answer do not fit the context: found before the call
│   └── UnsupportedError     the model or its server cannot do what was asked
└── WorkError
    └── LLMError             a call failed
        ├── ServerError      the server refused, failed, or was not reached; `status` is None without a reply
        ├── StreamError      a stream ended early; `partial` is the text that came
        ├── EmptyReplyError  no text and no tool call, as when hidden reasoning used up the token limit
        ├── StructureError   the reply does not fit the schema, not after one repair either; `text` is the reply
        └── ReplayError      a recording or a cache does not hold the reply
"""

from __future__ import annotations

from consilience.errors import RequestError, WorkError

__all__ = [
    "ContextError",
    "EmptyReplyError",
    "LLMError",
    "ReplayError",
    "ServerError",
    "StreamError",
    "StructureError",
    "UnsupportedError",
]


class ContextError(RequestError):
    """Messages and answer do not fit the model's context; nothing was sent."""


class UnsupportedError(RequestError):
    """The model or its server cannot do what was asked."""


class LLMError(WorkError):
    """A call to a language model failed."""


class ServerError(LLMError):
    """The server refused or failed, or was not reached: then `status` is None."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class StreamError(LLMError):
    """A stream ended early; `partial` is the text that had come."""

    def __init__(self, message: str, partial: str) -> None:
        super().__init__(message)
        self.partial = partial


class EmptyReplyError(LLMError):
    """The reply holds neither text nor a tool call."""


class StructureError(LLMError):
    """The reply does not fit the schema; `text` is the reply as it came."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


class ReplayError(LLMError):
    """A recording or a cache does not hold the reply that was asked for."""
