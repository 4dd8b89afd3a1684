"""A JSON schema as a type that pydantic checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any, Union

from pydantic import AfterValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, create_model

from consilience.core.hashing import canonical_json
from consilience.errors import Problems, RequestError

__all__ = ["type_of_schema"]

_SAYING_NOTHING = {"$schema", "$id", "$defs", "definitions", "title", "description", "default", "examples", "format"}
_LIMITS = {
    "string": {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"},
    "number": {
        "minimum": "ge",
        "maximum": "le",
        "exclusiveMinimum": "gt",
        "exclusiveMaximum": "lt",
        "multipleOf": "multiple_of",
    },
    "array": {"minItems": "min_length", "maxItems": "max_length"},
    "object": {},
    "boolean": {},
    "null": {},
}
_LIMITS["integer"] = _LIMITS["number"]
_OWN = {"array": {"items"}, "object": {"properties", "required", "additionalProperties"}}
_ANY = {"type", "enum", "const", "anyOf", "$ref"}


def type_of_schema(schema: Mapping[str, Any]) -> Any:
    """Return the type that accepts what a JSON schema accepts.

    >>> from pydantic import TypeAdapter
    >>> TypeAdapter(type_of_schema({"type": "array", "items": {"enum": ["yes", "no"]}})).validate_python(["no"])
    ['no']

    Raises RequestError with every keyword that is not checked (oneOf, allOf, not, if, ...) and with references that
    are not to `#/$defs/...`, or go round in a circle; types of pydantic can do what these cannot.
    """
    problems = Problems()
    found = _Reader(schema, problems).read(schema, "schema", ())
    problems.raise_if_any(RequestError, "schema")
    return found


class _Reader:
    def __init__(self, root: Mapping[str, Any], problems: Problems) -> None:
        self.root = root
        self.problems = problems

    def read(self, schema: Any, path: str, within: tuple[str, ...]) -> Any:
        if schema is True:
            return Any
        if not isinstance(schema, Mapping):
            self.problems.add(f"{path}: {schema!r} is no schema; a schema is a mapping")
            return Any
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]), path, within)
        kinds = self._kinds(schema, path)
        known = _SAYING_NOTHING | _ANY | {"anyOf"}
        for kind in kinds:
            known |= _LIMITS[kind].keys() | _OWN.get(kind, set())
        for word in sorted(schema.keys() - known):
            self.problems.add(f"{path}.{word}: this keyword is not checked here; use a pydantic type instead")
        found: Any = Any
        if kinds:
            found = reduce(or_, [self._typed(kind, schema, path, within) for kind in kinds])
        if "anyOf" in schema:
            choices = [
                self.read(choice, f"{path}.anyOf.{place}", within) for place, choice in enumerate(schema["anyOf"])
            ]
            if kinds or not choices:
                self.problems.add(
                    f"{path}: anyOf stands alone, with one choice or more; move the rest into its choices"
                )
            else:
                found = Union[tuple(choices)]  # noqa: UP007
        if "enum" in schema or "const" in schema:
            found = Annotated[found, AfterValidator(_one_of(schema.get("enum", [schema.get("const")])))]
        return found

    def _kinds(self, schema: Mapping[str, Any], path: str) -> list[str]:
        given = schema.get("type", [])
        kinds = [given] if isinstance(given, str) else list(given)
        if not kinds and "properties" in schema:
            kinds = ["object"]
        if not kinds and "items" in schema:
            kinds = ["array"]
        for kind in kinds:
            if kind not in _LIMITS:
                self.problems.add(f"{path}.type: {kind!r} is unknown; types are {', '.join(sorted(_LIMITS))}")
        return [kind for kind in kinds if kind in _LIMITS]

    def _reference(self, reference: str, path: str, within: tuple[str, ...]) -> Any:
        place, _, name = reference.rpartition("/")
        target = (
            self.root.get(place.removeprefix("#/"), {}).get(name) if place in ("#/$defs", "#/definitions") else None
        )
        if target is None:
            self.problems.add(f"{path}: nothing is at {reference!r}; references go to #/$defs/NAME")
            return Any
        if name in within:
            self.problems.add(f"{path}: {reference!r} contains itself; use a pydantic type instead")
            return Any
        return self.read(target, f"{path}.{name}", (*within, name))

    def _typed(self, kind: str, schema: Mapping[str, Any], path: str, within: tuple[str, ...]) -> Any:
        limits = {own: schema[word] for word, own in _LIMITS[kind].items() if word in schema}
        base: Any
        if kind == "array":
            base = list[self.read(schema.get("items", True), f"{path}.items", within)]  # type: ignore[misc]
        elif kind == "object":
            base = self._object(schema, path, within)
        else:
            number = StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)]
            simple: dict[str, Any] = {"string": StrictStr, "integer": StrictInt, "number": number}
            base = (simple | {"boolean": StrictBool, "null": None})[kind]
        return Annotated[base, Field(**limits)] if limits else Annotated[base, kind]

    def _object(self, schema: Mapping[str, Any], path: str, within: tuple[str, ...]) -> Any:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        more = schema.get("additionalProperties", True)
        if isinstance(more, Mapping):
            if properties:
                self.problems.add(f"{path}: properties beside a schema of additionalProperties are not checked here")
            return dict[str, self.read(more, f"{path}.additionalProperties", within)]  # type: ignore[misc]
        fields: dict[str, Any] = {}
        for place, name in enumerate([*properties, *sorted(required - properties.keys())]):
            kind = self.read(properties.get(name, True), f"{path}.{name}", within)
            fields[f"field_{place}"] = (kind, Field(alias=name) if name in required else Field(None, alias=name))
        config = ConfigDict(extra="allow" if more else "forbid")
        return create_model("Object", __config__=config, **fields)


def _one_of(values: Any) -> Callable[[Any], Any]:
    known = {canonical_json(value) for value in values}

    def check(value: Any) -> Any:
        plain = value.model_dump(by_alias=True) if hasattr(value, "model_dump") else value
        if canonical_json(plain) not in known:
            raise ValueError(f"it is none of {list(values)}")
        return value

    return check
