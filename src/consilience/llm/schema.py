"""Schemas of structured answers: a JSON schema, or a type that pydantic knows; and how JSON is found in a reply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from consilience.errors import RequestError
from consilience.llm.schema_types import type_of_schema

__all__ = ["NotFittingError", "Schema", "json_values"]

_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"```[\w-]*\n(.*?)```", re.DOTALL)
_MOST_STARTS = 64  # places where JSON may begin; a reply with more of them is not an answer with one object


class NotFittingError(ValueError):
    """A reply without JSON (`found` is False), or with JSON that does not fit the schema."""

    def __init__(self, message: str, *, found: bool) -> None:
        super().__init__(message)
        self.found = found


def _loads(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def json_values(text: str) -> Iterator[Any]:
    """Yield the JSON values in a text: the whole, what code fences hold, then every balanced object or array.

    >>> list(json_values('Sure: {"a": [1, 2]} is it.'))
    [{'a': [1, 2]}]

    Hidden reasoning between <think> and </think> is left out.
    """
    text = _THINKING.sub("", text).strip()
    for part in (text, *_FENCE.findall(text)):
        try:
            yield _loads(part)
        except (ValueError, RecursionError):
            continue
        if part is text:
            return
    decoder = json.JSONDecoder()
    start = 0
    for _ in range(_MOST_STARTS):
        begin = re.compile(r"[{\[]").search(text, start)
        if begin is None:
            return
        try:
            value, start = decoder.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            start = begin.start() + 1
            continue
        yield value


class Schema:
    """What an answer has to look like.

    >>> schema = Schema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    >>> schema.read('The result is {"n": 4}.')
    ({'n': 4}, True)

    A JSON schema gives plain data; a type (a pydantic model, a dataclass, list[int]) gives values of that type.
    Keywords of JSON schema that cannot be checked here are a RequestError. `strict` says whether the schema has the
    form that servers take in strict mode: every object closed, every property required.
    """

    def __init__(self, schema: Any) -> None:
        self.plain = isinstance(schema, Mapping)
        self.name = "answer"
        if isinstance(schema, Mapping):
            self.json: dict[str, Any] = dict(schema)
            self._adapter: TypeAdapter[Any] = TypeAdapter(type_of_schema(self.json))
            title = self.json.get("title")
        else:
            try:
                self._adapter = TypeAdapter(schema)
                self.json = self._adapter.json_schema()
            except (PydanticSchemaGenerationError, PydanticUserError, PydanticInvalidForJsonSchema) as error:
                raise RequestError(
                    f"schema {schema!r} is neither a JSON schema nor a type that pydantic knows: {error}"
                ) from error
            title = getattr(schema, "__name__", None)
        if isinstance(title, str):
            self.name = re.sub(r"[^\w-]", "_", title, flags=re.ASCII)[:64] or self.name
        self.strict = _is_strict(self.json)

    def read(self, text: str) -> tuple[Any, bool]:
        """Return the first value in a text that fits, and whether it had to be taken out of other text.

        Raises NotFittingError that says why the first value does not fit.
        """
        problem: NotFittingError | None = None
        for value in json_values(text):
            try:
                checked = self._adapter.validate_json(json.dumps(value), strict=True)
            except ValidationError as error:
                problem = problem or NotFittingError(_reasons(error), found=True)
                continue
            return (value if self.plain else checked), not _is_whole(text)
        raise problem or NotFittingError("there is no JSON in it", found=False)


def _is_whole(text: str) -> bool:
    try:
        _loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _reasons(error: ValidationError) -> str:
    reasons = []
    for found in error.errors(include_url=False)[:8]:
        place = ".".join(str(part) for part in found["loc"]) or "the value"
        reasons.append(f"{place}: {found['msg']}")
    return "; ".join(reasons)


def _is_strict(schema: Any) -> bool:
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, Mapping):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        named = set(schema.get("properties", {}))
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != named:
            return False
    return all(map(_is_strict, schema.values()))
