"""The door: tokens, rates, sizes, addresses."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.errors import RequestError
from consilience.serving.app import create_app
from consilience.serving.limits import BodyError, Buckets, read_body
from consilience.serving.security import Tokens, local_name, read_tokens
from consilience.serving.settings import Settings
from tests.serving.served import Client, raw_exchange, served

TOKEN = "correct-horse-battery-staple"


def test_tokens(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(tokens=("another-token-of-ours", TOKEN))
    assert TOKEN not in repr(settings)
    with served(create_app(folder, settings), TOKEN) as client, caplog.at_level(logging.INFO):
        assert client.ids("dogs") == ["notes/dogs"]
        assert client("GET", "/metrics", authorization=f"bearer  {TOKEN}").status == 200
        assert client("GET", "/index", Host="any.example").status == 200
        for wrong in (
            "",
            TOKEN,
            f"Basic {TOKEN}",
            "Bearer ",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            "Bearer \xff",
        ):
            for method, path in (("POST", "/search"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/none")):
                reply = client(method, path, authorization=wrong)
                assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
                assert "Traceback" not in reply.text and TOKEN not in reply.text
        assert Client(client.port)("GET", "/index").status == 401
        assert Client(client.port)("GET", "/health").status == 200
    assert TOKEN not in caplog.text


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIENCE_TOKEN", f" {TOKEN}\n")
    assert read_tokens() == (TOKEN,)
    (tmp_path / "tokens").write_text(f"# of the team\n{TOKEN}\n\nsecond-token-of-ours\n")
    assert read_tokens(tmp_path / "tokens") == (TOKEN, "second-token-of-ours")
    (tmp_path / "empty").write_text("# none\n")
    for name in ("empty", "nowhere"):
        with pytest.raises(RequestError, match="token"):
            read_tokens(tmp_path / name)


def test_settings_name_all_that_is_wrong() -> None:
    with pytest.raises(RequestError) as caught:
        Settings(host="0.0.0.0", workers=0, seconds=0, rate=-1, port=70_000)
    for said in ("0.0.0.0 can be reached", "workers 0", "seconds 0", "rate -1", "port 70000"):
        assert said in str(caught.value)
    for host in ("", "::", "192.168.0.1", "example.org"):
        with pytest.raises(RequestError, match="give a token"):
            Settings(host=host)
        assert Settings(host=host, tokens=(TOKEN,)).host == host
    for token in ("short", "with a blank in it, long", "über-long-token-here"):
        with pytest.raises(RequestError, match="token number 1") as caught:
            Settings(tokens=(token,))
        assert token not in str(caught.value)


@given(st.text(max_size=40))
def test_no_other_token_opens(text: str) -> None:
    tokens = Tokens([TOKEN])
    assert tokens.owner(f"Bearer {text}") is None or text.strip() == TOKEN
    assert tokens.owner(text) is None


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("LOCALHOST:80", True),
        ("127.0.0.1", True),
        ("[::1]", True),
        ("", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:80", False),
        ("[::1].evil", False),
        (":80", False),
    ],
)
def test_names_of_this_machine(host: str, own: bool) -> None:
    assert local_name(host) == own


def test_rates(folder: Path) -> None:
    with served(create_app(folder, Settings(rate=0.01, burst=3))) as client:
        replies = [client.search("dogs") for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
        assert (
            0 < int(replies[-1].headers["retry-after"]) <= 100 and "requests a second" in replies[-1].content["error"]
        )
        assert client("GET", "/health").status == 200


@given(st.lists(st.floats(0, 2), max_size=60), st.floats(0.5, 5), st.integers(1, 5))
def test_no_more_than_rate_and_burst(steps: list[float], rate: float, burst: int) -> None:
    now = 0.0
    buckets = Buckets(rate, burst, clock=lambda: now)
    allowed = []
    for step in steps:
        now += step
        wait = buckets.wait("a")
        assert wait >= 0
        if not wait:
            allowed.append(now)
    for first in range(len(allowed)):
        count = len(allowed) - first
        assert count <= burst + rate * (allowed[-1] - allowed[first]) + 1 + 1e-6


def test_large_bodies_are_refused_before_they_are_read(folder: Path) -> None:
    with served(create_app(folder, Settings(body_bytes=10_000, rate=0))) as client:
        head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
        for sent in (
            (head + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000,),
            (head + b"Content-Length: 99999999999999\r\n\r\n", b"x" * 1000),
            (head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 12, b"0\r\n\r\n"),
            (head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 100),
        ):
            answer = raw_exchange(client.port, *sent)
            assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
            assert b"at most 10000" in answer or b"more than 10000" in answer
        for length in (b"-1", b"many", b"1, 2"):
            answer = raw_exchange(client.port, head + b"Content-Length: " + length + b"\r\n\r\n{}")
            assert answer.startswith(b"HTTP/1.1 400 ") and b"Traceback" not in answer
        assert raw_exchange(client.port, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        raw_exchange(client.port, head + b"Content-Length: 100\r\n\r\n{", seconds=0.5)  # gone in the middle
        assert client.ids("dogs") == ["notes/dogs"]


def test_a_body_that_does_not_come() -> None:
    async def never() -> Any:
        await asyncio.sleep(60)

    with pytest.raises(BodyError) as caught:
        asyncio.run(read_body(never, "10", 100, 0.05))
    assert caught.value.status == 408


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=10), st.integers(1, 100))
def test_bodies_arrive_whole_or_not_at_all(parts: list[bytes], most: int) -> None:
    messages = [
        {"type": "http.request", "body": part, "more_body": place < len(parts) - 1} for place, part in enumerate(parts)
    ]
    rest = iter(messages)

    async def receive() -> Any:
        return next(rest)

    try:
        assert asyncio.run(read_body(receive, None, most, 5)) == b"".join(parts)
        assert sum(map(len, parts)) <= most
    except BodyError as error:
        assert error.status == 413 and sum(map(len, parts)) > most
