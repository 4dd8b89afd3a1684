"""How many tokens a text has, estimated without a tokenizer, and whether a request fits the context."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from consilience.llm.errors import ContextError
from consilience.llm.protocol import Message

__all__ = ["TokenCounter", "check_context", "count_messages", "estimate_tokens"]

TokenCounter = Callable[[str], int]

_PER_MESSAGE = 4  # role and separators, as chat templates write them


def estimate_tokens(text: str) -> int:
    """Return 1.3 tokens per word, and at least one per six bytes, for text without spaces.

    >>> estimate_tokens("one two three"), estimate_tokens("x" * 600), estimate_tokens("")
    (4, 100, 0)
    """
    return math.ceil(max(1.3 * len(text.split()), len(text.encode(errors="replace")) / 6))


def count_messages(messages: Sequence[Message], counter: TokenCounter = estimate_tokens) -> int:
    """Return the tokens of messages, with four more for each turn.

    >>> count_messages([Message("user", "one two three")])
    8
    """
    return sum(counter(message.content) + _PER_MESSAGE for message in messages)


def check_context(prompt_tokens: int, max_tokens: int | None, context: int | None, name: str) -> None:
    """Raise ContextError where prompt and answer do not fit; do nothing where the context is not known.

    >>> check_context(100, 200, 250, "tiny")
    Traceback (most recent call last):
    ...
    consilience.llm.errors.ContextError: tiny: about 100 tokens of prompt and 200 of answer; its context is 250: ...
    """
    wanted = max(max_tokens or 0, 1)
    if context is not None and prompt_tokens + wanted > context:
        raise ContextError(
            f"{name}: about {prompt_tokens} tokens of prompt and {wanted} of answer; its context is {context}: "
            "shorten the messages or lower max_tokens"
        )
