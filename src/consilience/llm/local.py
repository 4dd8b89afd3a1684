"""A local language model: generation with log-probabilities, streams and scores from a folder of weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.core.randomness import stream_key
from consilience.errors import RequestError
from consilience.llm.base import BaseLLM
from consilience.llm.errors import ContextError
from consilience.llm.protocol import Capabilities, Chunk, Message, Reply, Request, TokenLogprob, Usage

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.models.causal import CausalModel

__all__ = ["LocalLLM"]


class LocalLLM(BaseLLM):
    """A causal language model in this process.

    >>> import tempfile
    >>> from consilience.models import create_causal
    >>> folder = Path(tempfile.mkdtemp()) / "tiny"
    >>> config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1}
    >>> model = LocalLLM(create_causal(folder, config, "0123456789+="))
    >>> [token.token for token in model.score("1+1=", "2")]
    ['2']

    model: a CausalModel, or what `load_causal` opens. Greedy unless a temperature above 0 is given; a seed gives the
    same text again. max_tokens: None is 256, or what is left of the context. Messages go through the tokenizer's chat
    template; without one, they are joined by blank lines. Calls take turns. Other settings: see `BaseLLM`.
    """

    def __init__(self, model: CausalModel | str | Path, **settings: Any) -> None:
        if isinstance(model, str | Path):
            from consilience.models import load_causal

            model = load_causal(model)
        self.model = model
        own: dict[str, Any] = {"context": model.max_tokens, "counter": self._count}
        super().__init__(model.name, **(own | settings))
        self._lock = threading.Lock()

    @property
    def identity(self) -> dict[str, Any]:
        """The checkpoint's reference."""
        return {"adapter": "local", "model": self.model.checkpoint.reference}

    @property
    def capabilities(self) -> Capabilities:
        """Log-probabilities and scores; no tools."""
        return Capabilities(logprobs=True, score=True, context=self.context)

    def _count(self, text: str) -> int:
        return len(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt(self, messages: tuple[Message, ...]) -> list[int]:
        tokenizer = self.model.tokenizer
        if getattr(tokenizer, "chat_template", None):
            turns = [{"role": message.role, "content": message.content} for message in messages]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(tokenizer("\n\n".join(message.content for message in messages))["input_ids"])

    def _ends(self) -> set[int]:
        configured = self.model.module.generation_config.eos_token_id
        listed = configured if isinstance(configured, list) else [configured]
        return {int(token) for token in (*listed, self.model.tokenizer.eos_token_id) if token is not None}

    def _fits(self, request: Request) -> int:
        tokens = len(self._prompt(request.messages))  # exact: the template and special tokens are counted
        if self.context is not None and tokens + (request.max_tokens or 1) > self.context:
            raise ContextError(
                f"{self.name}: {tokens} tokens of prompt and {request.max_tokens or 1} of answer; its context is "
                f"{self.context}: shorten the messages or lower max_tokens"
            )
        return tokens

    def _send(self, request: Request) -> Reply:
        prompt = self._prompt(request.messages)
        answers = []
        for number in range(request.n):
            reply = None
            for chunk in self._decoded(request, prompt, number):
                reply = chunk.reply or reply
            assert reply is not None
            answers.append(reply)
        usage = Usage(len(prompt), sum(answer.usage.completion_tokens for answer in answers))
        first = answers[0]
        return Reply(
            first.text, finish=first.finish, logprobs=first.logprobs, usage=usage, alternatives=tuple(answers[1:])
        )

    def _stream(self, request: Request) -> Iterator[Chunk]:
        yield from self._decoded(request, self._prompt(request.messages), 0)

    def _decoded(self, request: Request, prompt: list[int], number: int) -> Iterator[Chunk]:
        """Yield one answer as it grows; text is held back while it may be the start of a stop sequence."""
        room = (self.context or self.model.max_tokens) - len(prompt)
        limit = min(request.max_tokens or 256, room)
        held = max((len(stop) for stop in request.stop), default=1) - 1
        ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        text, sent, finish = "", 0, "length"
        ends, tokenizer = self._ends(), self.model.tokenizer
        for token, values in self._tokens(request, prompt, limit, number):
            if token in ends:
                finish = "stop"
                break
            ids.append(token)
            if request.top_logprobs is not None:
                logprobs.append(self._told(token, values, request.top_logprobs))
            text = tokenizer.decode(ids, skip_special_tokens=True)
            found = [place for stop in request.stop if (place := text.find(stop)) >= 0]
            if found:
                text, finish = text[: min(found)], "stop"
                break
            # a character of several tokens shows as U+FFFD until it is whole
            safe = len(text) - held - (1 if text.endswith("\ufffd") else 0)
            if safe > sent:
                yield Chunk(text[sent:safe])
                sent = safe
        if len(text) > sent:
            yield Chunk(text[sent:])
        told = tuple(logprobs) if request.top_logprobs is not None else None
        yield Chunk("", Reply(text, finish=finish, logprobs=told, usage=Usage(len(prompt), len(ids))))

    def _tokens(self, request: Request, prompt: list[int], limit: int, number: int) -> Iterator[tuple[int, Tensor]]:
        """Yield each next token with the log-probabilities of the whole vocabulary before sampling."""
        import torch

        drawing = torch.Generator()
        if request.seed is None:
            drawing.seed()
        else:
            drawing.manual_seed(stream_key(request.seed, "llm", str(number)) >> 1)
        module, device = self.model.module, self.model.device
        inputs, past = torch.tensor([prompt or [next(iter(self._ends()), 0)]], device=device), None
        for _ in range(limit):
            with self._lock, torch.inference_mode():
                found = module(input_ids=inputs, past_key_values=past, use_cache=True)
                values = torch.log_softmax(found.logits[0, -1].float(), dim=-1).cpu()
            past = found.past_key_values
            token = _drawn(values, request.temperature, request.top_p, drawing)
            yield token, values
            inputs = torch.tensor([[token]], device=device)

    def _told(self, token: int, values: Tensor, top: int) -> TokenLogprob:
        text = self.model.tokenizer.decode
        best = values.topk(min(top, len(values))) if top else None
        likeliest = (
            {} if best is None else dict(zip(map(text, best.indices.tolist()), best.values.tolist(), strict=True))
        )
        return TokenLogprob(text([token]), float(values[token]), likeliest)

    def _score(self, prompt: str, continuation: str) -> tuple[TokenLogprob, ...]:
        import torch

        tokens, first = self.model.tokenise([(prompt, continuation)])
        batch = self.model.batch(tokens, first, np.arange(1))
        with self._lock, torch.inference_mode():
            values = torch.log_softmax(self.model.logits(batch)[0].float(), dim=-1).cpu()
        ids = batch.ids[0].tolist()
        last = len(ids) - (self.model.tokenizer.eos_token_id is not None)  # the end of text is not asked for
        if last <= int(first[0]):
            raise RequestError(f"{self.name}: the tokenizer makes no token of {continuation!r}")
        return tuple(
            TokenLogprob(self.model.tokenizer.decode([ids[place]]), float(values[place - 1, ids[place]]))
            for place in range(int(first[0]), last)
        )


def _drawn(values: Tensor, temperature: float | None, top_p: float | None, drawing: Any) -> int:
    import torch

    if not temperature:
        return int(values.argmax())
    shares = torch.softmax(values.double() / temperature, dim=-1)
    if top_p is not None and top_p < 1:
        ordered, places = shares.sort(descending=True, stable=True)
        ordered[ordered.cumsum(0) - ordered >= top_p] = 0  # the likeliest tokens that reach top_p together
        shares = torch.zeros_like(shares).scatter(0, places, ordered)
    return int(torch.multinomial(shares, 1, generator=drawing))
