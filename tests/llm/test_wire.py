"""The wire format over real sockets: our client against the loopback server."""

from __future__ import annotations

import json

import numpy as np
import pytest

from consilience.errors import BudgetError, RequestError
from consilience.llm import (
    CallBudget,
    EmptyReplyError,
    LLMError,
    Message,
    OpenAICompatibleLLM,
    ServerError,
    StreamError,
    Tool,
    ToolCall,
    UnsupportedError,
)
from tests.llm.handlers import Scripted
from tests.llm.server import Answer, completion, events_of, refusal, streamed

SOON = {"Retry_After": "0.01"}


def client(server, **settings):
    return OpenAICompatibleLLM(server.url, "tiny", **({"timeout": 5.0} | settings))


def test_a_reply_is_read(serve):
    server = serve(Scripted([Answer(completion("four"))]))
    reply = client(server).generate("2 + 2?")
    assert (reply.text, reply.finish, reply.usage.total, reply.usage.estimated) == ("four", "stop", 10, False)
    assert server.calls[0].path == "/v1/chat/completions"
    assert server.bodies == [{"model": "tiny", "messages": [{"role": "user", "content": "2 + 2?"}]}]


def test_settings_arrive_at_the_top_level_of_the_body(serve):
    server = serve(Scripted([Answer(completion("a", logprobs={"content": []}))]))
    client(server, extra_body={"top_k": 3}).generate(
        "q", stop="\n", seed=7, temperature=0.0, top_p=0.5, logprobs=2, max_tokens=9
    )
    settings = {name: value for name, value in server.bodies[0].items() if name not in ("model", "messages")}
    assert settings == {
        "stop": ["\n"],
        "seed": 7,
        "temperature": 0.0,
        "top_p": 0.5,
        "logprobs": True,
        "top_logprobs": 2,
        "max_tokens": 9,
        "top_k": 3,
    }


@pytest.mark.parametrize("key", [None, "a-secret-key"])
def test_the_key_is_sent_as_bearer(serve, key):
    server = serve(Scripted(["ok"]))
    client(server, api_key=key).generate("q")
    assert server.calls[0].headers["authorization"] == f"Bearer {key or 'none'}"


def test_base_url_and_key_come_from_the_environment(serve, monkeypatch):
    server = serve(Scripted(["ok"]))
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    assert OpenAICompatibleLLM(None, "tiny").generate("q").text == "ok"
    assert server.calls[0].headers["authorization"] == "Bearer from-the-environment"


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_base_urls_with_and_without_path(serve, ending):
    server = serve(Scripted(["ok"]))
    assert OpenAICompatibleLLM(server.url.removesuffix("/v1") + ending, "tiny").generate("q").text == "ok"
    assert server.calls[0].path == "/v1/chat/completions"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host/v1", "http://user:secret@host/v1"])
def test_wrong_base_urls_are_refused_before_a_call(url):
    with pytest.raises(RequestError, match="base_url") as caught:
        OpenAICompatibleLLM(url, "tiny")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_failures_that_pass_are_tried_again(serve, status):
    server = serve(Scripted([refusal(status, "later", **SOON), refusal(status, "later", **SOON), "third"]))
    assert client(server).generate("q").text == "third"
    assert len(server.calls) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_refusals_are_not_tried_again(serve, status):
    server = serve(Scripted([refusal(status, "so not")]))
    with pytest.raises(ServerError, match="so not") as caught:
        client(server).generate("q")
    assert caught.value.status == status
    assert len(server.calls) == 1


def test_after_the_last_retry_the_status_is_named(serve):
    server = serve(lambda call: refusal(429, "too many", **SOON))
    with pytest.raises(ServerError, match="after 1 retries") as caught:
        client(server, retries=1).generate("q")
    assert (caught.value.status, len(server.calls)) == (429, 2)


def test_a_key_that_the_server_repeats_is_hidden(serve):
    server = serve(Scripted([refusal(401, "Incorrect key: sk-0123456789")]))
    with pytest.raises(ServerError, match=r"\[key\].*check api_key") as caught:
        client(server, api_key="sk-0123456789").generate("q")
    assert "sk-0123456789" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_two_choices_are_put_in_order(serve):
    body = completion("first")
    body["choices"] = [completion("second")["choices"][0] | {"index": 1}, body["choices"][0]]
    reply = client(serve(Scripted([Answer(body)]))).generate("q", n=2)
    assert [reply.text, *(other.text for other in reply.alternatives)] == ["first", "second"]


def test_fewer_choices_than_asked_for(serve):
    with pytest.raises(UnsupportedError, match="2 answers asked for, 1 came"):
        client(serve(Scripted(["ok"]))).generate("q", n=2)


@pytest.mark.parametrize("body", [{"choices": []}, {}, {"choices": None}])
def test_no_choices(serve, body):
    with pytest.raises(LLMError, match="no choices"):
        client(serve(Scripted([Answer(body)]))).generate("q")


@pytest.mark.parametrize(
    ("content", "finish", "says"),
    [("", "length", "raise max_tokens"), (None, "length", "raise max_tokens"), ("", "content_filter", "filter")],
)
def test_empty_replies_are_errors(serve, content, finish, says):
    body = completion(content, finish=finish, reasoning_content="Let me think about")
    budget = CallBudget(calls=5)
    with pytest.raises(EmptyReplyError, match=says):
        client(serve(Scripted([Answer(body)])), budget=budget).generate("q")
    assert budget.spent["tokens"] == 10  # they were used all the same


def test_empty_text_behind_a_stop_sequence_is_an_answer(serve):
    assert client(serve(Scripted([Answer(completion(""))]))).generate("q", stop="\n").text == ""


def test_tool_calls_without_content(serve):
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    server = serve(Scripted([Answer(completion(None, finish="tool_calls", tool_calls=[call, call])), "2"]))
    model = client(server)
    reply = model.generate("q", tools=[Tool("add", "Adds one.")])
    assert reply.tool_calls == (ToolCall("x", "add", {"a": 1}), ToolCall("x-2", "add", {"a": 1}))
    assert server.bodies[0]["tools"][0]["function"]["name"] == "add"
    answers = [Message("tool", "2", tool_call_id=asked.id) for asked in reply.tool_calls]
    assert model.generate([Message("user", "q"), reply.message(), *answers]).text == "2"
    sent = server.bodies[1]["messages"]
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert [turn.get("tool_call_id") for turn in sent] == [None, None, "x", "x-2"]


def test_tool_arguments_that_are_no_json(serve):
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": '}}
    with pytest.raises(LLMError, match="tool call 0 cannot be read"):
        client(serve(Scripted([Answer(completion(None, tool_calls=[call]))]))).generate("q", tools=[Tool("add", "")])


def test_logprobs(serve):
    token = {"token": "a", "logprob": -0.25, "top_logprobs": [{"token": "b", "logprob": -2.0}]}
    server = serve(Scripted([Answer(completion("a", logprobs={"content": [token]})), "no logprobs"]))
    model = client(server)
    (found,) = model.generate("q", logprobs=1).logprobs
    assert (found.token, found.logprob, found.top) == ("a", -0.25, {"b": -2.0})
    with pytest.raises(UnsupportedError, match="the reply has none"):
        model.generate("q", logprobs=True)


def test_missing_usage_is_estimated_and_says_so(serve):
    reply = client(serve(Scripted([Answer(completion("one two", usage=None))]))).generate("q")
    assert reply.usage.estimated
    assert reply.usage.completion_tokens == 3


def test_content_in_parts(serve):
    body = completion([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    assert client(serve(Scripted([Answer(body)]))).generate("q").text == "ab"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b'{"choices": [{"mess'),
        Answer(b"<html>busy</html>", content_type="text/html"),
        Answer(b"[1]"),
        Answer(b""),
    ],
    ids=["truncated", "html", "list", "nothing"],
)
def test_bodies_that_are_no_reply(serve, answer):
    with pytest.raises(ServerError, match="no JSON object"):
        client(serve(Scripted([answer]))).generate("q")


def test_right_json_under_a_wrong_content_type_is_read(serve):
    assert client(serve(Scripted([Answer(completion("ok"), content_type="text/plain")]))).generate("q").text == "ok"


def test_an_error_with_status_200(serve):
    with pytest.raises(ServerError, match="model is loading"):
        client(serve(Scripted([Answer({"error": {"message": "model is loading"}})]))).generate("q")


def test_a_connection_that_is_cut_is_tried_again_then_named(serve):
    server = serve(lambda call: Answer(completion("ok"), cut=20))
    with pytest.raises(ServerError, match="connection was lost") as caught:
        client(server, retries=1).generate("q")
    assert (caught.value.status, len(server.calls)) == (None, 2)


def test_a_server_that_is_not_there(serve):
    server = serve(Scripted([]))
    server.close()
    with pytest.raises(ServerError, match="not reached"):
        client(server, retries=0).generate("q")


def test_a_server_that_does_not_answer_in_time(serve):
    server = serve(lambda call: Answer(completion("late"), delay=0.5))
    with pytest.raises(ServerError, match="no answer in time"):
        client(server, timeout=0.05, retries=0).generate("q")


def test_the_budget_of_seconds_bounds_a_call(serve):
    server = serve(lambda call: Answer(completion("late"), delay=0.5))
    model = client(server, retries=0, budget=CallBudget(seconds=0.05))
    with pytest.raises(ServerError, match="no answer in time"):
        model.generate("q")
    with pytest.raises(BudgetError, match="seconds"):
        model.generate("q")
    assert len(server.calls) <= 1


def test_max_tokens_by_its_other_name(serve):
    told = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server = serve(Scripted([refusal(400, told), "a", "b"]))
    model = client(server)
    assert [model.generate("q", max_tokens=5).text for _ in range(2)] == ["a", "b"]
    assert [sorted(body.keys() - {"model", "messages"}) for body in server.bodies] == [
        ["max_tokens"],
        ["max_completion_tokens"],
        ["max_completion_tokens"],
    ]


def test_a_fixed_temperature_is_not_dropped_silently(serve):
    with pytest.raises(ServerError, match="temperature"):
        client(serve(Scripted([refusal(400, "Unsupported value: 'temperature'")]))).generate("q", temperature=0.0)


# ---- streams


def test_streamed_text_is_the_sum_of_its_pieces(serve):
    server = serve(Scripted([streamed(events_of(["Hel", "lo ", "there"]))]))
    *pieces, last = client(server).stream("q", max_tokens=5)
    assert [piece.text for piece in pieces] == ["Hel", "lo ", "there"]
    assert (last.text, last.reply.text, last.reply.finish, last.reply.usage.total) == ("", "Hello there", "stop", 10)
    assert server.bodies[0]["stream_options"] == {"include_usage": True}
    assert server.bodies[0]["max_tokens"] == 5


def test_a_stream_in_single_bytes_keeps_its_characters(serve):
    data = b"".join(events_of(["grün ", "日本", "🙂"]))
    server = serve(Scripted([streamed([data[place : place + 1] for place in range(len(data))])]))
    assert "".join(piece.text for piece in client(server).stream("q")) == "grün 日本🙂"


def test_a_stream_without_usage(serve):
    *_, last = client(serve(Scripted([streamed(events_of(["a b"], usage=False))]))).stream("q")
    assert last.reply.usage.estimated


def test_a_streamed_tool_call(serve):
    parts = [{"index": 0, "id": "x", "function": {"name": "add", "arguments": '{"a"'}}]
    parts.append({"index": 0, "function": {"arguments": ": 1}"}})
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]} for part in parts]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    events = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    (last,) = client(serve(Scripted([streamed([*events, b"data: [DONE]\n\n"])]))).stream("q", tools=[Tool("add", "")])
    assert last.reply.tool_calls == (ToolCall("x", "add", {"a": 1}),)


@pytest.mark.parametrize("unfinished", [True, False], ids=["cut", "closed"])
def test_a_stream_that_ends_early_keeps_what_came(serve, unfinished):
    events = events_of(["Hel", "lo"], finish=None, usage=False)[:-1]
    budget = CallBudget(calls=3)
    stream = client(serve(Scripted([streamed(events, unfinished=unfinished)])), budget=budget).stream("q")
    with pytest.raises(StreamError) as caught:
        list(stream)
    assert caught.value.partial == "Hello"
    assert budget.spent["tokens"] > 0


def test_an_error_within_a_stream(serve):
    events = [*events_of(["Hel"])[:2], b'data: {"error": {"message": "out of memory"}}\n\n']
    with pytest.raises(StreamError, match="out of memory") as caught:
        list(client(serve(Scripted([streamed(events)]))).stream("q"))
    assert caught.value.partial == "Hel"


def test_a_stream_with_a_broken_event(serve):
    events = [*events_of(["Hel"])[:2], b'data: {"choices": [\n\n']
    with pytest.raises(StreamError):
        list(client(serve(Scripted([streamed(events)]))).stream("q"))


def test_a_stream_of_hidden_reasoning_only(serve):
    with pytest.raises(EmptyReplyError, match="raise max_tokens"):
        list(client(serve(Scripted([streamed(events_of([], finish="length"))]))).stream("q"))


def test_a_stream_that_is_left_frees_its_place(serve):
    server = serve(lambda call: streamed(events_of(["a", "b", "c"])))
    model = client(server, concurrency=1)
    stream = model.stream("q")
    assert next(stream).text == "a"
    stream.close()
    assert "".join(chunk.text for chunk in model.stream("q")) == "abc"


# ---- other calls


def test_embeddings_are_put_in_order(serve):
    rows = [{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2]}]
    server = serve(Scripted([Answer({"data": rows})]))
    found = client(server).embed(["a", "b"], dimensions=2)
    assert (found == np.array([[1, 2], [3, 4]], np.float32)).all()
    assert server.bodies[0] == {"model": "tiny", "input": ["a", "b"], "encoding_format": "float", "dimensions": 2}


def test_a_missing_embedding(serve):
    with pytest.raises(LLMError, match="one vector per text"):
        client(serve(Scripted([Answer({"data": [{"index": 0, "embedding": [1]}]})]))).embed(["a", "b"])


def test_rerank(serve):
    rows = [{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": 0.9}]
    server = serve(Scripted([Answer({"results": rows}), Answer({"results": rows[:1]})]))
    model = client(server)
    assert model.rerank("q", ["a", "b"]) == [(1, 0.9), (0, 0.1)]
    assert server.calls[0].path == "/v1/rerank"
    with pytest.raises(LLMError, match="1 results for 2"):
        model.rerank("q", ["a", "b"])


def test_models_and_context(serve):
    models = Answer({"data": [{"id": "other"}, {"id": "tiny", "max_model_len": 20}]})
    server = serve(Scripted([models, models]))
    model = client(server)
    assert (model.models(), model.ask_context(), model.capabilities.context) == (["other", "tiny"], 20, 20)
    with pytest.raises(RequestError, match="its context is 20"):
        model.generate("word " * 20)
    assert len(server.calls) == 2


def test_a_server_without_echo_cannot_score(serve):
    with pytest.raises(LLMError, match="does not echo"):
        client(serve(Scripted([Answer({"choices": [{"text": "b"}]})]))).score("a", "b")
