"""Language models behind one protocol: served ones, local ones, functions, recordings; nothing hosted unless named."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from consilience.llm.errors import (
    ContextError,
    EmptyReplyError,
    LLMError,
    ReplayError,
    ServerError,
    StreamError,
    StructureError,
    UnsupportedError,
)
from consilience.llm.protocol import (
    LLM,
    Capabilities,
    Chunk,
    Message,
    Reply,
    Request,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from consilience.llm.budget import CallBudget
    from consilience.llm.cache import ReplyCache
    from consilience.llm.function import FunctionLLM
    from consilience.llm.local import LocalLLM
    from consilience.llm.open import open_llm
    from consilience.llm.openai_compatible import OpenAICompatibleLLM
    from consilience.llm.recording import RecordingLLM, ReplayLLM
    from consilience.llm.trace import Trace

__all__ = [
    "LLM",
    "CallBudget",
    "Capabilities",
    "Chunk",
    "ContextError",
    "EmptyReplyError",
    "FunctionLLM",
    "LLMError",
    "LocalLLM",
    "Message",
    "OpenAICompatibleLLM",
    "RecordingLLM",
    "ReplayError",
    "ReplayLLM",
    "Reply",
    "ReplyCache",
    "Request",
    "ServerError",
    "StreamError",
    "StructureError",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "Trace",
    "UnsupportedError",
    "Usage",
    "open_llm",
]

_WHEN_ASKED = {
    "CallBudget": "budget",
    "FunctionLLM": "function",
    "LocalLLM": "local",
    "OpenAICompatibleLLM": "openai_compatible",
    "RecordingLLM": "recording",
    "ReplayLLM": "recording",
    "ReplyCache": "cache",
    "Trace": "trace",
    "open_llm": "open",
}


def __getattr__(name: str) -> Any:
    if name in _WHEN_ASKED:
        return getattr(import_module(f"{__name__}.{_WHEN_ASKED[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
