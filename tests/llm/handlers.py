"""What answers behind the loopback server: a script, rules that read the prompt, exact functions, noise, a tiny model.

A number that a test states comes from one of these, and the test says from which.
"""

from __future__ import annotations

import ast
import operator
import random
import re
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from consilience.llm import LLM, Reply
from tests.llm.server import Answer, Call, Handler, completion, events_of, refusal, streamed

Messages = list[dict[str, Any]]


class Scripted:
    """Replies in order, or by a pattern of the last message; what the script does not hold is kept in `unexpected`."""

    def __init__(self, answers: Sequence[Answer | str] | Mapping[str, Answer | str]) -> None:
        self._answers = answers if isinstance(answers, Mapping) else list(answers)
        self._lock = threading.Lock()
        self.unexpected: list[Call] = []

    def __call__(self, call: Call) -> Answer:
        with self._lock:
            answer: Answer | str | None = None
            if isinstance(self._answers, Mapping):
                asked = call.body["messages"][-1]["content"]
                answer = next((held for pattern, held in self._answers.items() if re.search(pattern, asked)), None)
            elif self._answers:
                answer = self._answers.pop(0)
            if answer is None:
                self.unexpected.append(call)
                return refusal(400, "the script has no reply for this")
        return Answer(completion(answer)) if isinstance(answer, str) else answer


def reading(messages: Messages, body: Mapping[str, Any]) -> str:
    """Answer with the sentence of the prompt's text that has most words of the question, its last line."""
    *text, question = messages[-1]["content"].strip().split("\n")
    words = set(re.findall(r"\w+", question.lower()))
    sentences = [part.strip() for line in text for part in re.split(r"(?<=[.!?])\s+", line) if part.strip()]
    best = max(sentences, key=lambda part: len(words & set(re.findall(r"\w+", part.lower()))), default="")
    known = best and len(words & set(re.findall(r"\w+", best.lower()))) > 1
    return best if known else "I do not know."


_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Expression):
        return _value(node.body)
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    assert isinstance(node, ast.Constant), "only numbers, lists and + - * /"
    return node.value


def symbolic(table: Mapping[str, Sequence[Any]]) -> Callable[[Messages, Mapping[str, Any]], str]:
    """Answer `calculate EXPRESSION`, `sort LIST`, `sum LIST` and `sql SELECT ...` over the table `t`, exactly."""

    def answer(messages: Messages, body: Mapping[str, Any]) -> str:
        verb, _, rest = messages[-1]["content"].partition(" ")
        if verb == "sql":
            with sqlite3.connect(":memory:") as base:
                base.execute(f"CREATE TABLE t ({', '.join(table)})")
                marks = ", ".join("?" * len(table))
                base.executemany(f"INSERT INTO t VALUES ({marks})", zip(*table.values(), strict=True))
                return str(base.execute(rest).fetchall())
        found = _value(ast.parse(rest, mode="eval"))
        return str({"calculate": lambda: found, "sort": lambda: sorted(found), "sum": lambda: sum(found)}[verb]())

    return answer


def noisy(
    inner: Callable[[Messages, Mapping[str, Any]], str], *, drop: float, corrupt: float, hallucinate: float, seed: int
) -> Callable[[Messages, Mapping[str, Any]], str]:
    """Spoil the answers of another handler at seeded rates."""
    draws, lock = random.Random(seed), threading.Lock()

    def answer(messages: Messages, body: Mapping[str, Any]) -> str:
        text = inner(messages, body)
        with lock:
            draw = draws.random()
        if draw < drop:
            return "I cannot say."
        if draw < drop + corrupt:
            return text[::-1]
        return "It is certainly Paris." if draw < drop + corrupt + hallucinate else text

    return answer


def serving_model(model: LLM) -> Handler:
    """Serve a local model with its true log-probabilities: chat, streams, and completions with echo for scores."""

    def handle(call: Call) -> Answer:
        body = call.body
        if call.path.endswith("/models"):
            return Answer({"data": [{"id": model.name, "max_model_len": model.capabilities.context}]})
        if call.path.endswith("/completions") and "prompt" in body:
            (first, *rest) = body["prompt"]  # the first character has no probability
            scores = model.score(first, "".join(rest))
            told = {"tokens": [first, *(token.token for token in scores)]}
            told["token_logprobs"] = [None, *(token.logprob for token in scores)]
            return Answer({"choices": [{"index": 0, "text": body["prompt"], "logprobs": told}]})
        settings = {name: body[name] for name in ("seed", "temperature", "top_p", "stop", "max_tokens") if name in body}
        if body.get("stream"):
            pieces = [chunk.text for chunk in model.stream(body["messages"], **settings) if chunk.reply is None]
            return streamed(events_of(pieces))
        logprobs = body.get("top_logprobs", True) if body.get("logprobs") else False
        return Answer(_told(model.generate(body["messages"], logprobs=logprobs, **settings)))

    return handle


def _told(reply: Reply) -> dict[str, Any]:
    logprobs = None
    if reply.logprobs is not None:
        content = [
            {
                "token": token.token,
                "logprob": token.logprob,
                "top_logprobs": [{"token": name, "logprob": value} for name, value in token.top.items()],
            }
            for token in reply.logprobs
        ]
        logprobs = {"content": content}
    usage = {"prompt_tokens": reply.usage.prompt_tokens, "completion_tokens": reply.usage.completion_tokens}
    return completion(reply.text, finish=reply.finish, logprobs=logprobs, usage=usage)
