"""Budget, cache, trace, context, concurrency: what bounds and records calls."""

from __future__ import annotations

import contextvars
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from consilience.errors import BudgetError, RequestError
from consilience.llm import (
    CallBudget,
    ContextError,
    FunctionLLM,
    LLMError,
    OpenAICompatibleLLM,
    ReplayError,
    Reply,
    ReplyCache,
    ServerError,
    Trace,
    Usage,
)
from tests.llm.server import Answer, completion, refusal


def counting():
    calls = []

    def answer(messages):
        calls.append(messages)
        return f"answer {len(calls)}"

    return answer, calls


def test_a_budget_of_calls_is_shared_and_never_passed():
    answer, calls = counting()
    budget = CallBudget(calls=5)
    models = [FunctionLLM(answer, budget=budget) for _ in range(2)]

    def ask(number: int) -> bool:
        try:
            models[number % 2].generate("q")
        except BudgetError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(40))) == 5
    assert len(calls) == 5


def test_tokens_under_way_are_counted():
    budget = CallBudget(tokens=100)
    first = budget.reserve(10, 50)
    with pytest.raises(BudgetError, match="60 of 100 tokens, the next call may use 60"):
        budget.reserve(10, 50)
    budget.settle(first, Usage(10, 2))
    budget.settle(budget.reserve(10, 50), Usage(10, 50))
    assert budget.spent["tokens"] == 72


def test_money():
    budget = CallBudget(money=1.0, prices=(10.0, 100.0))
    budget.settle(budget.reserve(10_000, 5_000), Usage(10_000, 5_000))
    assert budget.spent["money"] == pytest.approx(0.6)
    with pytest.raises(BudgetError, match=r"0.6 of 1 money, the next call may use 0.5"):
        budget.reserve(0, 5_000)


def test_a_failed_call_gives_back_what_it_held():
    def broken(messages):
        raise LLMError("no")

    budget = CallBudget(tokens=60)
    for _ in range(2):
        with pytest.raises(LLMError):
            FunctionLLM(broken, budget=budget).generate("q", max_tokens=50)
    assert budget.spent == {"calls": 2, "tokens": 0, "money": 0.0}


@pytest.mark.parametrize("limits", [{"calls": -1}, {"seconds": float("nan")}, {"money": 1.0}])
def test_impossible_budgets(limits):
    with pytest.raises(RequestError, match="budget"):
        CallBudget(**limits)


def test_the_cache_keeps_replies(tmp_path):
    answer, calls = counting()
    model = FunctionLLM(answer, cache=ReplyCache(tmp_path), budget=CallBudget(calls=2))
    assert [model.generate("q").text, model.generate("q").text, model.generate("other").text] == [
        "answer 1",
        "answer 1",
        "answer 2",
    ]
    assert len(calls) == 2
    assert model.generate("q").text == "answer 1"  # beyond the budget: nothing is called


def test_modes_of_the_cache(tmp_path):
    answer, calls = counting()

    def asked(mode, question):
        return FunctionLLM(answer, name="m", cache=ReplyCache(tmp_path, mode)).generate(question).text

    assert asked("write", "q") == "answer 1"
    assert asked("off", "q") == "answer 2"
    assert asked("read", "q") == "answer 1"
    assert asked("read", "new") == "answer 3"
    assert asked("replay", "q") == "answer 1"
    with pytest.raises(ReplayError, match="no reply is kept"):
        asked("replay", "new")
    with pytest.raises(RequestError, match="did you mean 'write'"):
        ReplyCache(tmp_path, "wrote")
    assert len(calls) == 3


def test_the_cache_tells_models_and_settings_apart(tmp_path):
    answer, calls = counting()
    for name, settings in (("a", {}), ("b", {}), ("a", {"seed": 1}), ("a", {"seed": 2}), ("a", {"seed": 1})):
        FunctionLLM(answer, name=name, cache=ReplyCache(tmp_path)).generate("q", **settings)
    assert len(calls) == 4


def test_a_broken_file_of_the_cache_is_named(tmp_path):
    model = FunctionLLM(lambda messages: "a", cache=ReplyCache(tmp_path))
    model.generate("q")
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:20])
    with pytest.raises(RequestError, match=file.name):
        model.generate("q")


def test_no_key_in_cache_or_trace(serve, tmp_path):
    server = serve(lambda call: Answer(completion("ok")))
    trace = Trace(tmp_path / "trace.jsonl")
    model = OpenAICompatibleLLM(server.url, "tiny", api_key="sk-secret-1", cache=ReplyCache(tmp_path), trace=trace)
    model.generate("q")
    assert len(written := [file.read_text() for file in tmp_path.rglob("*.json*")]) == 2
    assert not any("sk-secret-1" in text for text in written)


def test_spans_know_their_parents_and_errors(tmp_path):
    trace = Trace(tmp_path / "trace.jsonl")
    model = FunctionLLM(lambda messages: "a", trace=trace, budget=CallBudget(calls=1))
    with pytest.raises(BudgetError), trace.span("question"):
        model.generate("one")
        model.generate("two")
    calls = [span for span in trace.read() if span["name"] == "generate"]
    (outer,) = [span for span in trace.read() if span["name"] == "question"]
    assert [span["parent"] for span in calls] == [outer["id"]] * 2
    assert calls[0]["facts"]["reply"]["text"] == "a"
    assert calls[0]["facts"]["request"]["messages"] == [{"role": "user", "content": "one"}]
    assert "BudgetError" in calls[1]["error"] and "BudgetError" in outer["error"]


def test_parents_across_threads(tmp_path):
    trace = Trace(tmp_path / "trace.jsonl")
    model = FunctionLLM(lambda messages: "a", trace=trace)
    with trace.span("outer"):
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(model.generate, "q"))
        thread.start()
        thread.join()
    assert [(span["name"], span["parent"] is None) for span in trace.read()] == [("generate", False), ("outer", True)]


def test_a_trace_goes_on_after_a_kill(tmp_path):
    path = tmp_path / "trace.jsonl"
    model = FunctionLLM(lambda messages: "a", trace=Trace(path))
    model.generate("q")
    list(model.stream("q"))
    with path.open("a") as file:
        file.write('{"id": 3, "na')
    FunctionLLM(lambda messages: "a", trace=Trace(path)).generate("q")
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["generate", "stream", "generate"]
    assert [span["id"] for span in Trace(path).read()] == [1, 2, 3]


def test_overflow_is_found_before_the_call():
    answer, calls = counting()
    model = FunctionLLM(answer, context=50)
    with pytest.raises(ContextError, match="its context is 50"):
        model.generate("word " * 30, max_tokens=10)
    with pytest.raises(ContextError):
        next(model.stream("word " * 100))
    assert model.generate("word " * 30, max_tokens=5).text and len(calls) == 1
    exact = FunctionLLM(answer, context=50, counter=len)
    with pytest.raises(ContextError, match="about 54 tokens"):
        exact.generate("x" * 50)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n": 0}, "n is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"stop": ["a", ""]}, "empty stop sequence"),
    ],
)
def test_impossible_settings(settings, says):
    with pytest.raises(RequestError, match=says):
        FunctionLLM(str).generate("q", **settings)


@pytest.mark.parametrize("messages", [[], [{"role": "robot", "content": "x"}], [3], [{"content": "x"}]])
def test_impossible_messages(messages):
    with pytest.raises(RequestError, match="message"):
        FunctionLLM(str).generate(messages)


def test_replies_survive_their_plain_form():
    reply = Reply("a", usage=Usage(1, 2), alternatives=(Reply("b"),), raw={"x": 1})
    assert Reply.from_dict(json.loads(json.dumps(reply.to_dict()))) == reply


def test_two_hundred_at_once_stay_within_the_limit(serve):
    server = serve(lambda call: Answer(completion(call.body["messages"][0]["content"]), delay=0.05))
    model = OpenAICompatibleLLM(server.url, "tiny", concurrency=16, timeout=30)
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda number: model.generate(f"q{number}").text, range(200)))
    assert found == [f"q{number}" for number in range(200)]
    assert server.most_in_flight <= 16


def test_a_server_killed_mid_run_gives_named_errors(serve):
    enough = threading.Event()

    def handle(call):
        if len(server.calls) > 20:
            enough.set()
            return Answer(completion("late"), cut=3)
        return Answer(completion("ok"))

    server = serve(handle)
    model = OpenAICompatibleLLM(server.url, "tiny", retries=0, timeout=5)

    def ask(number: int) -> str:
        try:
            return model.generate("q").text
        except ServerError as error:
            return f"named {error.status}"

    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, number) for number in range(60)]
        assert enough.wait(30)
        server.close()
        found = [future.result(timeout=30) for future in asked]
    assert set(found) == {"ok", "named None"}
    assert found.count("named None") >= 40


def test_refusals_under_load_are_waited_out(serve):
    busy = threading.Semaphore(3)

    def handle(call):
        if not busy.acquire(blocking=False):
            return refusal(429, "busy", retry_after="0.02")
        try:
            return Answer(completion("ok"))
        finally:
            busy.release()

    model = OpenAICompatibleLLM(serve(handle).url, "tiny", retries=20, timeout=10)
    with ThreadPoolExecutor(12) as pool:
        assert {reply.text for reply in pool.map(lambda _: model.generate("q"), range(36))} == {"ok"}
