"""A Python function as a language model: for rules, for other libraries, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from consilience.errors import RequestError
from consilience.llm.base import BaseLLM
from consilience.llm.protocol import Capabilities, Message, Reply, Request, TokenLogprob

__all__ = ["FunctionLLM"]


class FunctionLLM(BaseLLM):
    """A model that is a function of the messages.

    >>> parrot = FunctionLLM(lambda messages: messages[-1].content[::-1], name="parrot")
    >>> parrot.generate("abc").text
    'cba'
    >>> FunctionLLM(lambda messages: 'It is {"sure": true}.').generate("Sure?", schema={"type": "object"}).parsed
    {'sure': True}

    function: takes the list of Messages, or the whole Request with `whole=True`; returns a string or a Reply. score:
    takes prompt and continuation, returns TokenLogprobs. Other settings: see `BaseLLM`. With n > 1 it is called n
    times.
    """

    def __init__(
        self,
        function: Callable[..., str | Reply],
        *,
        name: str | None = None,
        whole: bool = False,
        score: Callable[[str, str], Sequence[TokenLogprob]] | None = None,
        capabilities: Capabilities | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(name or str(getattr(function, "__name__", "function")), **settings)
        self._function = function
        self._whole = whole
        self._scored = score
        self._can = capabilities or Capabilities(score=score is not None, tools=True, context=self.context)

    @property
    def capabilities(self) -> Capabilities:
        """What was declared."""
        return self._can

    def _send(self, request: Request) -> Reply:
        first, *others = [self._answer(request) for _ in range(request.n)]
        usage = sum((other.usage for other in others), first.usage)
        return replace(first, usage=usage, alternatives=tuple(others))

    def _answer(self, request: Request) -> Reply:
        given: Request | list[Message] = request if self._whole else list(request.messages)
        answer = self._function(given)
        if isinstance(answer, str):
            return Reply(answer)
        if not isinstance(answer, Reply):
            raise RequestError(f"{self.name}: the function returned {answer!r}; it has to return a string or a Reply")
        return answer

    def _score(self, prompt: str, continuation: str) -> tuple[TokenLogprob, ...]:
        if self._scored is None:
            return super()._score(prompt, continuation)
        return tuple(self._scored(prompt, continuation))
