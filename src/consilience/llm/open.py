"""One entry to all models: `open_llm("http://127.0.0.1:8000/v1#tiny")`, `open_llm("local:build/merged")`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from consilience.errors import MissingExtraError, RequestError
from consilience.llm.base import BaseLLM

__all__ = ["open_llm"]


def open_llm(name: str, **settings: Any) -> BaseLLM:
    """Open the model that a name says.

    >>> open_llm("http://127.0.0.1:8000/v1#tiny", timeout=30)
    OpenAICompatibleLLM('http://127.0.0.1:8000/v1', 'tiny')
    >>> open_llm("tiny")
    Traceback (most recent call last):
    ...
    consilience.errors.RequestError: model 'tiny' does not say where it runs: ...

    name: `http://HOST/v1#MODEL` a server, `openai:MODEL` the server at OPENAI_BASE_URL, `local:FOLDER` (or any
    checkpoint reference) weights in this process, `replay:FILE.jsonl` a recording. settings: those of the adapter and
    of `BaseLLM`. Raises RequestError for other names, MissingExtraError where a library is not installed. Nothing is
    called before the first question.
    """
    scheme, _, rest = name.partition(":")
    if scheme in ("http", "https"):
        url, _, model = name.partition("#")
        if not model:
            raise RequestError(f"{name!r} names no model; write the model behind '#', like {name.rstrip('/')}#MODEL")
        return _served(url, model, settings)
    openers: dict[str, Callable[[], BaseLLM]] = {
        "openai": lambda: _served(None, rest, settings),
        "local": lambda: _local(rest, settings),
        "replay": lambda: _replayed(rest, settings),
    }
    if scheme in openers and rest:
        return openers[scheme]()
    raise RequestError(
        f"model {name!r} does not say where it runs: write http://HOST:PORT/v1#MODEL, openai:MODEL (with "
        "OPENAI_BASE_URL set), local:FOLDER or replay:FILE.jsonl; nothing hosted is called unless it is named"
    )


def _served(url: str | None, model: str, settings: dict[str, Any]) -> BaseLLM:
    if find_spec("openai") is None:
        raise MissingExtraError("openai", "llm")
    from consilience.llm.openai_compatible import OpenAICompatibleLLM

    return OpenAICompatibleLLM(url, model, **settings)


def _local(folder: str, settings: dict[str, Any]) -> BaseLLM:
    from consilience.llm.local import LocalLLM

    return LocalLLM(folder, **settings)


def _replayed(path: str, settings: dict[str, Any]) -> BaseLLM:
    from consilience.llm.recording import ReplayLLM

    return ReplayLLM(path, **settings)
