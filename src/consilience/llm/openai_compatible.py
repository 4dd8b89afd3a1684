"""Any server that speaks the OpenAI wire format: vLLM, llama.cpp, Ollama, TGI, SGLang, LM Studio, hosted ones."""

from __future__ import annotations

import ipaddress
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from consilience.errors import MissingExtraError, RequestError
from consilience.llm.base import BaseLLM
from consilience.llm.errors import LLMError, ServerError, StreamError
from consilience.llm.protocol import Capabilities, Chunk, Reply, Request, TokenLogprob
from consilience.llm.structured import RungMemory
from consilience.llm.wire import StreamedReply, chat_body, read_reply, read_scores

__all__ = ["OpenAICompatibleLLM", "is_loopback", "normal_base_url"]

_RUNGS = RungMemory()  # what each server takes is found out once per process


def normal_base_url(given: str) -> str:
    """Return a base URL without a slash at the end, with /v1 where it has no path.

    >>> normal_base_url("http://127.0.0.1:8000/"), normal_base_url("http://host/api/v1/chat/completions")
    ('http://127.0.0.1:8000/v1', 'http://host/api/v1')
    """
    url = given.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(f"base_url {given!r} is no http address; write it like http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RequestError("base_url holds a user, a password, a query or a fragment; give keys as api_key=")
    return url if parts.path else f"{url}/v1"


def is_loopback(url: str) -> bool:
    """Whether a URL is on this machine.

    >>> is_loopback("http://localhost:8080/v1"), is_loopback("http://127.9.9.9/v1"), is_loopback("http://10.0.0.1")
    (True, True, False)
    """
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OpenAICompatibleLLM(BaseLLM):
    """A model behind a base URL; no URL is ever assumed.

    >>> model = OpenAICompatibleLLM("http://127.0.0.1:8000/v1", "tiny", api_key="secret")
    >>> model
    OpenAICompatibleLLM('http://127.0.0.1:8000/v1', 'tiny')

    base_url: None takes OPENAI_BASE_URL; without it there is a RequestError. api_key: None takes OPENAI_API_KEY; local
    servers take any. timeout: seconds without a byte; connecting has at most 5. retries: after 408, 409, 429, 5xx and
    lost connections, waiting as Retry-After says, else 0.5 to 8 s. concurrency: calls under way at once, over all
    threads. extra_body: fields of the server's own (top_k, guided_json), sent with every call. Proxies of the
    environment are not used for this machine. Other settings: see `BaseLLM`.

    Threads may share one. A server that refuses max_tokens is asked with max_completion_tokens from then on. Score
    needs /completions with echo and logprobs, as vLLM has them. Needs the extra `llm`.
    """

    def __init__(
        self,
        base_url: str | None,
        model: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 2,
        concurrency: int = 16,
        extra_body: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        given = base_url or os.environ.get("OPENAI_BASE_URL")
        if not given:
            raise RequestError(
                f"no server is named for the model {model!r}: give base_url (like http://127.0.0.1:8000/v1) or set "
                "OPENAI_BASE_URL; nothing hosted is called unless it is named"
            )
        if not model:
            raise RequestError("no model is named; servers with a single model take any name, others list theirs")
        if concurrency < 1 or retries < 0 or not timeout > 0:
            raise RequestError(f"concurrency {concurrency}, retries {retries}, timeout {timeout}: use >= 1, >= 0, > 0")
        self.base_url = normal_base_url(given)
        super().__init__(model, **settings)
        self._rungs = _RUNGS
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self.timeout = timeout
        self.retries = retries
        self.extra_body = dict(extra_body or {})
        self._slots = threading.BoundedSemaphore(concurrency)
        self._lock = threading.Lock()
        self._length_name = "max_tokens"
        self._client: Any = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r}, {self.name!r})"

    @property
    def identity(self) -> dict[str, Any]:
        """Base URL, model and fields of the server's own."""
        return {"base_url": self.base_url, "model": self.name} | ({"extra": self.extra_body} if self.extra_body else {})

    @property
    def capabilities(self) -> Capabilities:
        """All that the protocol has: what a server lacks shows when it is asked."""
        return Capabilities(True, True, True, True, True, self.context)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _opened(self) -> Any:
        with self._lock:
            if self._client is None:
                try:
                    import openai
                except ImportError as error:
                    raise MissingExtraError("openai", "llm") from error
                local = is_loopback(self.base_url)
                self._client = openai.OpenAI(
                    base_url=self.base_url,
                    api_key=self._key,
                    max_retries=self.retries,
                    http_client=openai.DefaultHttpxClient(trust_env=not local),
                )
            return self._client

    def _options(self) -> dict[str, Any]:
        left = self.budget.remaining_seconds if self.budget else None
        seconds = self.timeout if left is None else max(min(self.timeout, left), 0.001)
        # Connecting has its own, shorter limit; the client takes a mapping of neither, so a Timeout is made.
        import openai

        return {"timeout": openai.Timeout(seconds, connect=min(5.0, seconds))}

    def _hidden(self, text: str) -> str:
        """Return a text without the key, which servers repeat in refusals."""
        return text if len(self._key) < 8 else text.replace(self._key, "[key]")

    @contextmanager
    def _named_errors(self, path: str) -> Iterator[None]:
        import openai

        place = f"{self.base_url}{path} ({self.name})"
        try:
            yield
        except openai.APIStatusError as error:
            told = self._hidden(str(error))[:1000]
            hints = {
                401: "; check api_key or OPENAI_API_KEY",
                404: "; check base_url and the model's name",
                429: f"; still refused after {self.retries} retries: lower concurrency",
            }
            raise ServerError(f"{place}: {told}{hints.get(error.status_code, '')}", error.status_code) from None
        except openai.APITimeoutError:
            raise ServerError(f"{place}: no answer in time, {self.retries + 1} times; raise timeout") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            told = self._hidden(f"{type(cause).__name__} {cause}")
            raise ServerError(f"{place}: not reached, or the connection was lost ({told}); is it running?") from None
        except openai.APIError as error:
            raise ServerError(f"{place}: {self._hidden(str(error))[:1000]}") from None

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the JSON object that the server answers; a body makes it a POST."""
        client = self._opened()
        with self._slots, self._named_errors(path):
            if body is None:
                text = client.get(path, cast_to=str, options=self._options())
            else:
                text = client.post(path, cast_to=str, body={**body, **self.extra_body}, options=self._options())
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            shown = self._hidden(text[:200])
            raise ServerError(f"{self.base_url}{path} ({self.name}): the reply is no JSON object: {shown!r}")
        if record.get("error"):
            raise ServerError(f"{self.base_url}{path} ({self.name}): {self._hidden(str(record['error']))[:1000]}")
        return record

    def _with_length(self, request: Request, call: Any) -> Any:
        """Run call(body), once more with the other name of the limit where the server refuses this one."""
        name = self._length_name
        try:
            return call(chat_body(request, self.name, length_name=name))
        except ServerError as error:
            if request.max_tokens is None or error.status != 400 or "max_completion_tokens" not in str(error):
                raise
            if name == "max_completion_tokens":
                raise
            self._length_name = "max_completion_tokens"
            return call(chat_body(request, self.name, length_name=self._length_name))

    def _send(self, request: Request) -> Reply:
        record = self._with_length(request, lambda body: self._ask("/chat/completions", body))
        return read_reply(record, self.name)

    def _open_stream(self, body: dict[str, Any]) -> Any:
        rest = {key: value for key, value in body.items() if key not in ("model", "messages")} | self.extra_body
        with self._named_errors("/chat/completions"):
            return self._opened().chat.completions.create(
                model=body["model"],
                messages=body["messages"],
                stream=True,
                stream_options={"include_usage": True},
                extra_body=rest,
                timeout=self._options()["timeout"],
            )

    def _stream(self, request: Request) -> Iterator[Chunk]:
        gathered, text = StreamedReply(), ""
        with self._slots:
            chunks = self._with_length(request, self._open_stream)
            try:
                with self._named_errors("/chat/completions"):
                    for chunk in chunks:
                        if piece := gathered.add(chunk.to_dict(mode="json")):
                            text += piece
                            yield Chunk(piece)
            except (ServerError, ValueError) as error:  # ValueError: an event that is no JSON
                raise StreamError(f"{self.name}: the stream broke after {text[-80:]!r}: {error}", text) from error
            finally:
                chunks.close()
        if not gathered.ended:
            raise StreamError(f"{self.name}: the server closed the stream after {text[-80:]!r}", text)
        yield Chunk("", gathered.reply(self.name))

    def _score(self, prompt: str, continuation: str) -> tuple[TokenLogprob, ...]:
        body = {"model": self.name, "prompt": prompt + continuation, "echo": True, "logprobs": 1, "max_tokens": 0}
        record = self._ask("/completions", {**body, "temperature": 0})
        return read_scores(record, prompt, self.name)

    def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> NDArray[np.float32]:
        """Return (texts, dimensions) float32 from /embeddings, in the order of the texts."""
        if isinstance(texts, str) or not texts:
            raise RequestError(f"embed got {texts!r}; give a list of at least one text")
        body: dict[str, Any] = {"model": self.name, "input": list(texts), "encoding_format": "float"}
        record = self._ask("/embeddings", body | ({"dimensions": dimensions} if dimensions else {}))
        try:
            rows = {int(row["index"]): row["embedding"] for row in record["data"]}
            return np.array([rows[place] for place in range(len(texts))], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise LLMError(f"{self.name}: /embeddings did not give one vector per text: {str(record)[:200]}") from error

    def rerank(self, query: str, documents: Sequence[str], *, top: int | None = None) -> list[tuple[int, float]]:
        """Return (position, score) of documents by /rerank, the best first; all of them, or the `top` best."""
        if isinstance(documents, str) or not documents:
            raise RequestError(f"rerank got {documents!r}; give a list of at least one document")
        body = {"model": self.name, "query": query, "documents": list(documents), "top_n": top or len(documents)}
        record = self._ask("/rerank", body)
        try:
            found = [(int(row["index"]), float(row["relevance_score"])) for row in record["results"]]
        except (KeyError, TypeError, ValueError) as error:
            raise LLMError(f"{self.name}: /rerank did not give results with scores: {str(record)[:200]}") from error
        if len({place for place, _ in found} & set(range(len(documents)))) != min(
            top or len(documents), len(documents)
        ):
            raise LLMError(f"{self.name}: /rerank gave {len(found)} results for {len(documents)} documents")
        return sorted(found, key=lambda row: (-row[1], row[0]))

    def models(self) -> list[str]:
        """Return the names of the models that the server lists on /models."""
        return [str(entry.get("id")) for entry in self._ask("/models", None).get("data") or ()]

    def ask_context(self) -> int | None:
        """Ask the server for the model's context, and keep to it from then on; None where it does not say.

        vLLM tells it as max_model_len on /models, llama.cpp as n_ctx beside its models.
        """
        for entry in self._ask("/models", None).get("data") or ():
            if entry.get("id") == self.name:
                meta = entry.get("meta") or {}
                found = entry.get("max_model_len") or entry.get("context_length") or meta.get("n_ctx")
                self.context = int(found) if found else self.context
        return self.context
