"""The ladder of structured answers against six behaviours of servers, and the schemas it checks with."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from consilience.errors import RequestError
from consilience.llm import (
    CallBudget,
    EmptyReplyError,
    FunctionLLM,
    OpenAICompatibleLLM,
    ServerError,
    StructureError,
    UnsupportedError,
)
from consilience.llm.schema import NotFittingError, Schema, json_values
from consilience.llm.schema_types import type_of_schema
from tests.llm.handlers import Scripted
from tests.llm.server import Answer, completion, refusal

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "rank": {"type": "integer", "minimum": 1}},
    "required": ["city", "rank"],
    "additionalProperties": False,
}
WANTED = {"city": "Oslo", "rank": 2}
GOOD, BAD = json.dumps(WANTED), '{"city": "Oslo", "rank": "second"}'


def honours(body):
    return GOOD if body.get("response_format", {}).get("type") == "json_schema" else "Oslo, I think."


def ignores_with_a_fence(body):
    return f"Here it is:\n```json\n{GOOD}\n```\nAnything else?"


def ignores_with_prose(body):
    return f"<think>Perhaps {BAD}</think>The answer is {GOOD}, as {{you}} asked."


def knows_objects_only(body):
    if body.get("response_format", {}).get("type") == "json_schema":
        return refusal(400, "response_format of type json_schema is not supported")
    assert '"rank"' in body["messages"][-1]["content"]  # the schema is told in the prompt
    return GOOD


def gets_it_right_when_told(body):
    return GOOD if "does not fit: rank: " in body["messages"][-1]["content"] else BAD


def never_gets_it(body):
    return "I would rather not."


@pytest.mark.parametrize(
    ("behaviour", "calls", "rung"),
    [
        (honours, 1, "json_schema"),
        (ignores_with_a_fence, 1, "text"),
        (ignores_with_prose, 1, "text"),
        (knows_objects_only, 2, "json_object"),
        (gets_it_right_when_told, 2, "repair"),
        (never_gets_it, 2, None),
    ],
)
def test_six_behaviours(serve, behaviour, calls, rung):
    def handle(call):
        answer = behaviour(call.body)
        return Answer(completion(answer)) if isinstance(answer, str) else answer

    server = serve(handle)
    model = OpenAICompatibleLLM(server.url, "tiny", timeout=5)
    if rung is None:
        with pytest.raises(StructureError, match="after 2 calls: there is no JSON in it") as caught:
            model.generate("Which city?", schema=CITY)
        assert caught.value.text == "I would rather not."
    else:
        reply = model.generate("Which city?", schema=CITY)
        assert (reply.parsed, reply.rung, reply.calls) == (WANTED, rung, calls)
    assert len(server.calls) == calls


def test_what_a_server_refuses_is_remembered(serve):
    server = serve(lambda call: ask(call.body))

    def ask(body: dict[str, Any]) -> Answer:
        if "response_format" in body:
            return refusal(400, "unknown field response_format")
        return Answer(completion(GOOD))

    models = [OpenAICompatibleLLM(server.url, "tiny", timeout=5) for _ in range(2)]
    found = [model.generate("q", schema=CITY) for model in (*models, models[0])]
    assert [reply.calls for reply in found] == [3, 1, 1]
    assert {reply.rung for reply in found} == {"text"}
    assert OpenAICompatibleLLM(server.url, "another", timeout=5).generate("q", schema=CITY).calls == 3


def test_a_strict_schema_says_so(serve):
    server = serve(lambda call: Answer(completion(GOOD)))
    model = OpenAICompatibleLLM(server.url, "tiny", timeout=5)
    model.generate("q", schema=CITY)
    model.generate("q", schema={**CITY, "additionalProperties": True, "title": "A city"})
    sent = [body["response_format"]["json_schema"] for body in server.bodies]
    assert [(held["name"], held["strict"]) for held in sent] == [("answer", True), ("A_city", False)]
    assert sent[0]["schema"] == CITY


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refusal(400, "the prompt is too long"), ServerError),
        (refusal(401, "wrong key"), ServerError),
        (Answer(completion("", finish="length")), EmptyReplyError),
    ],
)
def test_other_failures_do_not_go_down_the_ladder(serve, answer, error):
    server = serve(Scripted([answer]))
    with pytest.raises(error):
        OpenAICompatibleLLM(server.url, "tiny", timeout=5).generate("q", schema=CITY)
    assert len(server.calls) == 1


def test_programming_errors_surface():
    def broken(messages):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        FunctionLLM(broken).generate("q", schema=CITY)


def test_an_answer_that_was_cut_is_not_repaired(serve):
    server = serve(Scripted([Answer(completion(GOOD[:12], finish="length"))]))
    with pytest.raises(StructureError, match="raise max_tokens") as caught:
        OpenAICompatibleLLM(server.url, "tiny", timeout=5).generate("q", schema=CITY)
    assert (caught.value.text, len(server.calls)) == (GOOD[:12], 1)


def test_usage_and_budget_count_every_call():
    replies = iter([BAD, GOOD])
    budget = CallBudget(calls=9)
    reply = FunctionLLM(lambda messages: next(replies), budget=budget).generate("q", schema=CITY)
    assert budget.spent["calls"] == reply.calls == 2
    assert budget.spent["tokens"] == reply.usage.total


def test_several_structured_answers_are_refused():
    with pytest.raises(RequestError, match="one at a time"):
        FunctionLLM(str).generate("q", schema=CITY, n=2)


def test_types_give_values_of_the_type():
    @dataclass
    class Point:
        x: int
        y: float

    class City(BaseModel):
        city: str
        rank: int

    def answering(text):
        return FunctionLLM(lambda messages: text)

    assert answering('{"x": 1, "y": 2}').generate("q", schema=Point).parsed == Point(1, 2.0)
    assert answering(GOOD).generate("q", schema=City).parsed == City(city="Oslo", rank=2)
    assert answering("so [1, 2]").generate("q", schema=list[int]).parsed == [1, 2]
    with pytest.raises(RequestError, match="neither a JSON schema nor a type"):
        answering("1").generate("q", schema=object())


# ---- schemas


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, [1, -5], [1.5, "1", True, None]),
        ({"type": "number", "exclusiveMaximum": 3}, [1, 2.5], [3, "2", True]),
        ({"type": "string", "minLength": 2, "pattern": "^a"}, ["ab"], ["a", "ba", 1]),
        ({"type": ["string", "null"]}, ["x", None], [1, []]),
        ({"type": "boolean"}, [True], [1, "true"]),
        ({"enum": ["a", 1, None]}, ["a", 1, None], ["b", True, "1"]),
        ({"const": {"a": 1}}, [{"a": 1}], [{"a": 2}, "a"]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, [[], [1, 2]], [[1, 2, 3], ["a"], 1]),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [1.5, None]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1}], [{"a": "b"}, []]),
        (CITY, [WANTED], [{"city": "Oslo"}, {**WANTED, "more": 1}, {"city": "Oslo", "rank": 0}]),
        ({"properties": {"_a b": {"type": "integer"}}}, [{}, {"_a b": 1, "c": 2}], [{"_a b": None}, [1]]),
        ({"required": ["a"], "type": "object"}, [{"a": None}], [{}]),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}, [None], [0]),
        ({}, [1, "a", [None]], []),
    ],
)
def test_what_schemas_accept(schema, good, bad):
    checked = Schema(schema)
    for value in good:
        assert checked.read(json.dumps(value)) == (value, False)
    for value in bad:
        with pytest.raises(NotFittingError) as caught:
            checked.read(json.dumps(value))
        assert caught.value.found


def test_keywords_that_are_not_checked_are_refused_together():
    tree = {"$ref": "#/$defs/node"}
    schema = {
        "type": "object",
        "properties": {"a": {"oneOf": [{}]}, "b": {"type": "text"}, "c": tree, "d": {"$ref": "other.json"}},
        "$defs": {"node": {"type": "object", "properties": {"next": tree}}},
    }
    with pytest.raises(RequestError) as caught:
        type_of_schema(schema)
    for said in ("a.oneOf: this keyword", "'text' is unknown", "contains itself", "nothing is at 'other.json'"):
        assert said in str(caught.value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text('ab{}[]"\\, ', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab{", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text("ab}", min_size=1, max_size=3), PLAIN, max_size=3))
def test_any_object_is_found_in_prose_and_fences(value):
    text = json.dumps(value)
    assert next(json_values(text)) == value
    assert next(json_values(f"Well, here:\n```json\n{text}\n```\n")) == value
    assert next(json_values(f"Well, {text} it is.")) == value


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=200))
def test_no_text_breaks_the_search(text):
    assert all(isinstance(value, dict | list | str | int | float | None) for value in json_values(text))


def test_deep_nesting_and_constants_are_no_json():
    assert list(json_values("[" * 50_000)) == []
    with pytest.raises(NotFittingError, match="no JSON"):
        Schema({"type": "number"}).read("NaN")


def test_a_type_of_pydantic_reads_strictly():
    with pytest.raises(NotFittingError, match=re.escape("0: Input should be a valid integer")):
        Schema(list[int]).read('["1"]')
    with pytest.raises(ValidationError):
        TypeAdapter(type_of_schema({"type": "integer"})).validate_python("1")


def test_tools_and_schema_need_a_model_that_takes_tools(serve):
    from consilience.llm import Capabilities, Tool

    with pytest.raises(UnsupportedError, match="takes no tools"):
        FunctionLLM(str, capabilities=Capabilities()).generate("q", tools=[Tool("a", "")])
