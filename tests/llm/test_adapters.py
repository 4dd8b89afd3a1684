"""Local models, recordings, names of models, and the honest stand-ins behind the loopback server."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from consilience.errors import MissingExtraError, RequestError
from consilience.llm import (
    ContextError,
    FunctionLLM,
    LocalLLM,
    OpenAICompatibleLLM,
    RecordingLLM,
    ReplayError,
    ReplayLLM,
    ServerError,
    TokenLogprob,
    UnsupportedError,
    open_llm,
)
from consilience.models import create_causal
from tests.llm.handlers import noisy, reading, serving_model, symbolic
from tests.llm.server import Answer, completion, refusal, texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm") / "tiny"
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "initializer_range": 0.5}
    create_causal(path, config, "abcdefgh ")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return LocalLLM(folder)


def test_greedy_generation_is_that_of_the_model(model):
    (expected,) = model.model.generate(["abc"], new_tokens=8)
    reply = model.generate("abc", max_tokens=8)
    assert (reply.text, reply.usage.completion_tokens) == (expected.text, expected.tokens)
    assert reply.finish == ("length" if expected.cut else "stop")


def test_logprobs_of_an_answer_are_its_score(model):
    reply = model.generate("abc", max_tokens=6, logprobs=3)
    scored = model.score("abc", reply.text)
    assert "".join(token.token for token in scored) == reply.text
    np.testing.assert_allclose([t.logprob for t in reply.logprobs], [t.logprob for t in scored], atol=1e-5)
    for token in reply.logprobs:
        assert len(token.top) == 3
        assert max(token.top.values()) == token.logprob  # greedy takes the likeliest


def test_a_score_is_the_loss_without_the_end(model):
    scored = sum(token.logprob for token in model.score("ab", "cd"))
    whole, _ = model.model.losses(["abcd"])
    start, _ = model.model.losses(["ab"])
    assert scored == pytest.approx(start[0] - whole[0], abs=1e-5)
    with pytest.raises(RequestError, match="empty continuation"):
        model.score("ab", "")


def test_sampling_is_a_function_of_the_seed(model):
    def drawn(**settings):
        reply = model.generate("abc", n=3, temperature=1.0, max_tokens=8, **settings)
        return [reply.text, *(other.text for other in reply.alternatives)]

    assert drawn(seed=1) == drawn(seed=1)
    assert drawn(seed=1) != drawn(seed=2)
    assert len(set(drawn(seed=1))) > 1
    assert set(drawn(seed=1, top_p=1e-9)) == {model.generate("abc", max_tokens=8).text}


def test_streams_and_stop_sequences(model):
    whole = model.generate("abc", max_tokens=12).text
    *pieces, last = model.stream("abc", max_tokens=12)
    assert "".join(chunk.text for chunk in pieces) == whole == last.reply.text
    stop = whole[3:5]
    *pieces, last = model.stream("abc", max_tokens=12, stop=stop)
    assert "".join(chunk.text for chunk in pieces) == whole[: whole.index(stop)] == last.reply.text
    assert last.reply.finish == "stop"


def test_the_context_of_a_local_model_is_exact(model):
    room = model.context - 4  # the start token is one of the prompt's
    with pytest.raises(ContextError, match=f"4 tokens of prompt and {room + 1} of answer"):
        model.generate("abc", max_tokens=room + 1)


def test_a_chat_template_is_used(folder):
    model = LocalLLM(folder)
    model.model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    asked = [{"role": "system", "content": "ab"}, {"role": "user", "content": "cd"}]
    ids = model._prompt(tuple(model_messages(asked)))
    assert model.model.tokenizer.decode(ids) == "ab cd "


def model_messages(records):
    from consilience.llm import Message

    return [Message.from_dict(record) for record in records]


def test_what_a_local_model_lacks_is_refused(model):
    from consilience.llm import Tool

    with pytest.raises(UnsupportedError, match="takes no tools"):
        model.generate("abc", tools=[Tool("a", "")])


def test_a_tiny_model_served_with_its_true_logprobs(serve, model):
    server = serve(serving_model(model))
    served = OpenAICompatibleLLM(server.url, model.name, timeout=20)
    ours, theirs = (one.generate("abc", max_tokens=6, logprobs=2) for one in (model, served))
    assert theirs.text == ours.text
    assert theirs.logprobs == ours.logprobs
    assert theirs.usage == ours.usage
    assert "".join(chunk.text for chunk in served.stream("abc", max_tokens=6)) == ours.text
    ours_scored, scored = model.score("abc", "de"), served.score("abc", "de")
    assert [token.token for token in scored] == ["d", "e"]
    np.testing.assert_allclose([t.logprob for t in scored], [t.logprob for t in ours_scored], atol=1e-5)
    assert served.ask_context() == model.context


# ---- functions and recordings


def test_functions():
    whole = FunctionLLM(lambda request: f"{request.seed} {request.max_tokens}", whole=True)
    assert whole.generate("q", seed=3, max_tokens=4).text == "3 4"
    scoring = FunctionLLM(str, score=lambda prompt, continuation: [TokenLogprob(continuation, -1.0)])
    assert scoring.score("a", "b") == (TokenLogprob("b", -1.0),)
    with pytest.raises(UnsupportedError, match="score needs them"):
        FunctionLLM(str).score("a", "b")
    with pytest.raises(RequestError, match="returned 3"):
        FunctionLLM(lambda messages: 3).generate("q")
    with pytest.raises(UnsupportedError, match="no log-probabilities"):
        FunctionLLM(str).generate("q", logprobs=True)


def test_a_recording_replays_without_the_server(serve, tmp_path):
    def handle(call):
        if "response_format" in call.body:
            return refusal(400, "response_format is not supported")
        return texts(lambda messages, body: '{"n": 4}')(call)

    def run(model):
        schema = {"type": "object", "required": ["n"]}
        structured = model.generate("2 + 2?", schema=schema)
        return (
            structured.parsed,
            structured.rung,
            structured.calls,
            model.generate("q").to_dict(),
            [chunk.text for chunk in model.stream("s")],
        )

    server = serve(handle)
    path = tmp_path / "calls.jsonl"
    recorded = run(RecordingLLM(OpenAICompatibleLLM(server.url, "tiny", api_key="sk-secret-1"), path))
    server.close()
    assert "sk-secret-1" not in path.read_text()
    replay = open_llm(f"replay:{path}")
    assert run(replay) == recorded
    assert recorded[:3] == ({"n": 4}, "text", 3)
    with pytest.raises(ReplayError, match="all that were recorded have been replayed"):
        replay.generate("q")
    with pytest.raises(ReplayError, match="was recorded"):
        replay.generate("q", seed=1)
    assert ReplayLLM(path).identity == {"base_url": server.url, "model": "tiny"}


def test_equal_requests_replay_in_their_order(tmp_path):
    answers = iter("abc")
    model = RecordingLLM(FunctionLLM(lambda messages: next(answers)), tmp_path / "r.jsonl")
    for _ in range(3):
        model.generate("q")
    replay = ReplayLLM(tmp_path / "r.jsonl")
    assert [replay.generate("q").text for _ in range(3)] == ["a", "b", "c"]


def test_scores_and_odd_characters_replay(tmp_path):
    scoring = FunctionLLM(lambda messages: "a\u2028b\n", score=lambda prompt, rest: [TokenLogprob(rest, -1.5)])
    model = RecordingLLM(scoring, tmp_path / "r.jsonl")
    expected = model.generate("q").text, model.score("a", "b")
    replay = ReplayLLM(tmp_path / "r.jsonl")
    assert (replay.generate("q").text, replay.score("a", "b")) == expected


def test_recordings_that_cannot_be_used(tmp_path):
    path = tmp_path / "r.jsonl"
    with pytest.raises(RequestError, match="no such file"):
        ReplayLLM(path)
    path.write_text('{"format": "other"}\n')
    with pytest.raises(RequestError, match="not a recording"):
        ReplayLLM(path)
    with pytest.raises(RequestError, match="record into a new file"):
        RecordingLLM(FunctionLLM(str), path)
    path.unlink()
    RecordingLLM(FunctionLLM(str), path).generate("q")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(RequestError, match="line 2 is no JSON"):
        ReplayLLM(path)


def test_a_lost_connection_is_not_recorded(serve, tmp_path):
    server = serve(lambda call: Answer(completion("ok"), cut=5))
    model = RecordingLLM(OpenAICompatibleLLM(server.url, "tiny", retries=0), tmp_path / "r.jsonl")
    with pytest.raises(ServerError):
        model.generate("q")
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 1


# ---- names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpt-x", "does not say where it runs"),
        ("", "does not say where it runs"),
        ("local:", "does not say where it runs"),
        ("http://127.0.0.1:8000/v1", "names no model"),
        ("openai:gpt-x", "set OPENAI_BASE_URL"),
        ("replay:nowhere.jsonl", "no such file"),
    ],
)
def test_names_that_are_refused(name, says):
    with pytest.raises(RequestError, match=says):
        open_llm(name)


def test_names(folder, serve, monkeypatch):
    assert open_llm(f"local:{folder}").generate("abc", max_tokens=3).text
    server = serve(lambda call: Answer(completion(call.body["model"])))
    assert open_llm(f"{server.url}#a/b").generate("q").text == "a/b"
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert open_llm("openai:m", timeout=5).generate("q").text == "m"


def test_a_missing_client_names_the_extra(monkeypatch):
    monkeypatch.setattr("consilience.llm.open.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"consilience\[llm\]"):
        open_llm("http://127.0.0.1:8000/v1#m")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"consilience\[llm\]"):
        OpenAICompatibleLLM("http://127.0.0.1:8000/v1", "m").generate("q")


def test_opening_loads_no_client_and_calls_nobody():
    code = (
        "import sys, socket; socket.socket.connect = None; from consilience.llm import open_llm; "
        "open_llm('http://127.0.0.1:1/v1#m'); print(*{'openai', 'torch', 'transformers'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# ---- stand-ins that answer by rules


def test_a_reader_answers_only_from_its_prompt(serve):
    model = OpenAICompatibleLLM(serve(texts(reading)).url, "reader")
    question = "When was the bridge built?"
    assert model.generate(question).text == "I do not know."
    notes = "The bridge was built in 1932. The tower is older."
    assert model.generate(f"{notes}\n{question}").text == "The bridge was built in 1932."


def test_symbolic_answers_are_exact(serve):
    model = OpenAICompatibleLLM(serve(texts(symbolic({"name": ["a", "b"], "size": [3, 5]}))).url, "symbolic")
    asked = {
        "calculate 2 + 3 * 4": "14",
        "sort [3, 1, 2]": "[1, 2, 3]",
        "sum [3, 1, 2]": "6",
        "sql SELECT name FROM t WHERE size > 3": "[('b',)]",
    }
    assert {question: model.generate(question).text for question in asked} == asked


def test_noise_is_seeded_and_at_its_rates(serve):
    spoil = {"drop": 0.2, "corrupt": 0.2, "hallucinate": 0.1}

    def run(seed):
        handler = noisy(lambda messages, body: "right", **spoil, seed=seed)
        model = OpenAICompatibleLLM(serve(texts(handler)).url, "noisy")
        return [model.generate("q").text for _ in range(60)]

    first = run(1)
    assert first == run(1) != run(2)
    assert 15 <= first.count("right") <= 45
    assert {"right", "thgir", "I cannot say.", "It is certainly Paris."} == set(first)


def test_plain_forms_are_json(serve, model):
    reply = model.generate("abc", max_tokens=3, logprobs=1)
    assert type(reply).from_dict(json.loads(json.dumps(reply.to_dict()))) == reply
