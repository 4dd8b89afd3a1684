"""The official client against the loopback server: it speaks the format as that client expects it."""

from __future__ import annotations

import openai
import pytest

from tests.llm.handlers import Scripted
from tests.llm.server import Answer, completion, refusal, texts
from tests.llm.test_wire import SOON, client


def official(server):
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=2, http_client=http)


def test_the_official_client_reads_a_reply(serve):
    server = serve(texts(lambda messages, body: messages[-1]["content"].upper()))
    found = official(server).chat.completions.create(model="tiny", messages=[{"role": "user", "content": "abc"}])
    assert (found.choices[0].message.content, found.usage.total_tokens) == ("ABC", 10)


def test_the_official_client_reads_a_stream(serve):
    server = serve(texts(lambda messages, body: "streamed text"))
    asked = [{"role": "user", "content": "q"}]
    chunks = official(server).chat.completions.create(model="tiny", messages=asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "streamed text"


def test_the_official_client_retries(serve):
    server = serve(Scripted([refusal(429, "later", **SOON), refusal(429, "later", **SOON), "third"]))
    found = official(server).chat.completions.create(model="tiny", messages=[{"role": "user", "content": "q"}])
    assert found.choices[0].message.content == "third"


@pytest.mark.parametrize(("status", "kind"), [(400, openai.BadRequestError), (404, openai.NotFoundError)])
def test_the_official_client_sees_refusals(serve, status, kind):
    with pytest.raises(kind, match="so not"):
        official(serve(Scripted([refusal(status, "so not")]))).chat.completions.create(model="tiny", messages=[])


def test_the_official_client_sends_what_we_send(serve):
    asked = {"seed": 3, "temperature": 0.5, "top_p": 0.9, "max_tokens": 4, "stop": ["\n"], "logprobs": True}
    server = serve(lambda call: Answer(completion("ok", logprobs={"content": []})))
    official(server).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "q"}], top_logprobs=2, **asked
    )
    settings = {name: value for name, value in asked.items() if name != "logprobs"}
    client(server).generate("q", logprobs=2, **settings)
    assert server.bodies[0] == server.bodies[1]
