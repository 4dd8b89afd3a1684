"""What all adapters share: checks before a call, budget, cache, trace, structured answers, no silent emptiness."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from consilience.errors import ConsilienceError, Problems, RequestError
from consilience.llm.budget import CallBudget
from consilience.llm.cache import ReplyCache
from consilience.llm.errors import EmptyReplyError, StreamError, UnsupportedError
from consilience.llm.protocol import (
    Capabilities,
    Chunk,
    Conversation,
    Reply,
    Request,
    TokenLogprob,
    Tool,
    Usage,
    as_messages,
)
from consilience.llm.schema import Schema
from consilience.llm.structured import RungMemory, structured_reply
from consilience.llm.tokens import TokenCounter, check_context, count_messages, estimate_tokens
from consilience.llm.trace import Trace

__all__ = ["BaseLLM"]


class BaseLLM(ABC):
    """An adapter: it says what it is and can do, sends one Request, and may stream and score.

    >>> class Echo(BaseLLM):
    ...     capabilities = Capabilities()
    ...     def _send(self, request):
    ...         return Reply(request.messages[-1].content)
    >>> echo = Echo("echo", budget=CallBudget(calls=2))
    >>> echo.generate("hello").text, echo.budget.spent["calls"]
    ('hello', 1)

    counter: tokens of a text, an estimate by default. context: tokens that prompt and answer may have together; more
    is a ContextError before the call. A reply without text and tool calls is an EmptyReplyError.
    """

    def __init__(
        self,
        name: str,
        *,
        budget: CallBudget | None = None,
        cache: ReplyCache | None = None,
        trace: Trace | None = None,
        counter: TokenCounter = estimate_tokens,
        context: int | None = None,
    ) -> None:
        self.name = name
        self.budget = budget
        self.cache = cache
        self.trace = trace
        self.counter = counter
        self.context = context
        self._rungs = RungMemory()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers beside the request: part of the keys of caches and recordings; never a secret."""
        return {"adapter": type(self).__name__, "model": self.name}

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the model can do."""

    @abstractmethod
    def _send(self, request: Request) -> Reply:
        """Make one call; `usage` stays empty where it is not known."""

    def _stream(self, request: Request) -> Iterator[Chunk]:
        reply = self._send(request)
        yield Chunk(reply.text)
        yield Chunk("", reply)

    def _score(self, prompt: str, continuation: str) -> tuple[TokenLogprob, ...]:
        raise UnsupportedError(f"{self.name}: this model gives no log-probabilities of a text; score needs them")

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
        """Return the answer to messages; see `LLM.generate`.

        Raises RequestError before the call, an LLMError or BudgetError where the call fails.
        """
        wanted = None if logprobs is False else 0 if logprobs is True else logprobs
        request = self._request(messages, tools, n, stop, seed, temperature, top_p, wanted, max_tokens)
        if schema is None:
            return self.complete(request)
        if n != 1:
            raise RequestError(f"n is {n} beside a schema; ask for structured answers one at a time")
        can = self.capabilities
        first = 0 if can.json_schema else 1 if can.json_object else 2
        key = repr(sorted(self.identity.items()))
        return structured_reply(request, Schema(schema), self.complete, self._rungs, key, first)

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
        """Yield the answer as it comes; the last chunk carries the whole reply. Streams are not cached.

        Raises as `generate` does, and StreamError with the partial text where the stream ends early.
        """
        return self._streamed(self._request(messages, tools, 1, stop, seed, temperature, top_p, None, max_tokens))

    def score(self, prompt: str, continuation: str) -> tuple[TokenLogprob, ...]:
        """Return the natural log-probability of each token of a continuation, given the prompt."""
        if not continuation:
            raise RequestError("score of an empty continuation; give the text whose probability is asked for")
        tokens = self.counter(prompt) + self.counter(continuation)
        check_context(tokens, None, self.context, self.name)
        held = self.budget.reserve(tokens, None) if self.budget else None
        used = Usage()
        try:
            with self._span("score", {"prompt": prompt, "continuation": continuation}) as facts:
                scores = self._score(prompt, continuation)
                used = Usage(tokens, estimated=True)
                facts["logprob"] = sum(token.logprob for token in scores)
                return scores
        finally:
            if self.budget and held:
                self.budget.settle(held, used)

    def complete(self, request: Request) -> Reply:
        """Answer one Request: from the cache, or by one call within the budget."""
        tokens = self._fits(request)
        key = {"model": self.identity, "request": request.to_dict()}
        with self._span("generate", request.to_dict()) as facts:
            kept = self.cache.get(key) if self.cache else None
            facts["cached"] = kept is not None
            reply = self._called(request, tokens) if kept is None else kept
            facts["reply"] = reply.to_dict() | {"raw": None}
            self._check(reply, request)
            if kept is None and self.cache:
                self.cache.put(key, reply)
            return reply

    def _called(self, request: Request, tokens: int) -> Reply:
        held = self.budget.reserve(tokens, self._most(request)) if self.budget else None
        used = Usage()
        try:
            reply = self._send(request)
            used = reply.usage if reply.usage.total else self._estimated(tokens, reply)
            return replace(reply, usage=used)
        finally:
            if self.budget and held:
                self.budget.settle(held, used)

    def _streamed(self, request: Request) -> Iterator[Chunk]:
        tokens = self._fits(request)
        held = self.budget.reserve(tokens, self._most(request)) if self.budget else None
        begun, text, reply, error = time.monotonic(), "", None, None
        try:
            for chunk in self._stream(request):
                text += chunk.text
                if chunk.reply is None:
                    yield chunk
                    continue
                reply = chunk.reply
                if not reply.usage.total:
                    reply = replace(reply, usage=self._estimated(tokens, reply))
                self._check(reply, request)
                yield Chunk("", reply)
            if reply is None:
                raise StreamError(f"{self.name}: the stream ended without an end after {text[-80:]!r}", text)
        except ConsilienceError as problem:
            error = f"{type(problem).__name__}: {problem}"
            raise
        finally:
            used = reply.usage if reply else Usage(tokens, self.counter(text), estimated=True)
            if self.budget and held:
                self.budget.settle(held, used)
            if self.trace:
                facts = {"model": self.identity, "request": request.to_dict(), "text": text, "usage": used.to_dict()}
                self.trace.add("stream", time.monotonic() - begun, facts, error)

    def _span(self, name: str, request: dict[str, Any]) -> Any:
        return self.trace.span(name, model=self.identity, request=request) if self.trace else nullcontext({})

    @staticmethod
    def _most(request: Request) -> int | None:
        return None if request.max_tokens is None else request.max_tokens * request.n

    def _estimated(self, tokens: int, reply: Reply) -> Usage:
        answers = (reply, *reply.alternatives)
        return Usage(tokens, sum(self.counter(answer.text) for answer in answers), estimated=True)

    def _fits(self, request: Request) -> int:
        tokens = count_messages(request.messages, self.counter)
        check_context(tokens, request.max_tokens, self.context, self.name)
        return tokens

    def _check(self, reply: Reply, request: Request) -> None:
        for answer in (reply, *reply.alternatives):
            stopped = answer.finish == "stop" and bool(request.stop)
            if not answer.text and not answer.tool_calls and not stopped:
                why = {
                    "length": "max_tokens was used up before any text, as models that think first do; raise max_tokens",
                    "content_filter": "the server's content filter removed it",
                }.get(answer.finish, "the model ended at once; look at the prompt and its chat template")
                used = f"{answer.usage.completion_tokens or reply.usage.completion_tokens} tokens"
                raise EmptyReplyError(f"{self.name}: the reply is empty (finish {answer.finish!r}, {used}): {why}")
        if request.top_logprobs is not None and reply.text and reply.logprobs is None:
            raise UnsupportedError(f"{self.name}: log-probabilities were asked for and the reply has none")
        if len(reply.alternatives) + 1 != request.n:
            raise UnsupportedError(f"{self.name}: {request.n} answers asked for, {len(reply.alternatives) + 1} came")

    def _request(
        self,
        messages: Conversation,
        tools: Sequence[Tool] | None,
        n: int,
        stop: str | Sequence[str],
        seed: int | None,
        temperature: float | None,
        top_p: float | None,
        top_logprobs: int | None,
        max_tokens: int | None,
    ) -> Request:
        problems, can = Problems(), self.capabilities
        if n < 1:
            problems.add(f"n is {n}; use 1 or more")
        if temperature is not None and not 0 <= temperature < float("inf"):
            problems.add(f"temperature is {temperature}; use 0 or more")
        if top_p is not None and not 0 < top_p <= 1:
            problems.add(f"top_p is {top_p}; use a share above 0, up to 1")
        if max_tokens is not None and max_tokens < 1:
            problems.add(f"max_tokens is {max_tokens}; use 1 or more")
        if top_logprobs is not None and not 0 <= top_logprobs <= 20:
            problems.add(f"logprobs is {top_logprobs}; use True, or 0 to 20")
        names = [tool.name for tool in tools or ()]
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.add(f"two tools are named {name!r}")
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in stops:
            problems.add("an empty stop sequence would end every answer at once")
        problems.raise_if_any(RequestError, self.name)
        if top_logprobs is not None and not can.logprobs:
            raise UnsupportedError(f"{self.name}: this model gives no log-probabilities")
        if tools and not can.tools:
            raise UnsupportedError(f"{self.name}: this model takes no tools")
        found = as_messages(messages)
        return Request(found, tuple(tools or ()), n, stops, seed, temperature, top_p, top_logprobs, max_tokens)
