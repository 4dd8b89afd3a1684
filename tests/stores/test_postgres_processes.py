"""Several processes and threads on one index in a server, and writers that are killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psycopg
import pytest

from consilience.data.documents import Document
from consilience.errors import StorageError
from consilience.stores.open import has_stores, open_stores
from consilience.stores.postgres.stores import PostgresStores
from consilience.stores.protocol import Batch
from consilience.stores.table import Edge
from tests.stores.conftest import MakePostgres
from tests.stores.writer import IDS, WORDS, document, state_after, step, vector

KILLS = 12


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 16)).astype(np.float32)


@pytest.mark.slow
def test_one_process_writes_and_others_read(make_postgres: MakePostgres, postgres_url: str) -> None:
    place = f"{postgres_url}&index=notes"
    assert not has_stores(place)
    stores = make_postgres()
    assert has_stores(place)
    code = f"""
from consilience.errors import OutputError
from consilience.stores.open import open_stores
place = {place!r}
reader = open_stores(place)
print(len(reader), reader.stats()["generation"])
try:
    open_stores(place, write=True)
except OutputError as error:
    print(error)
"""
    stores.write(Batch([Document("a", "dogs")], {"s": rows(1)}), replace=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seen, refusal = done.stdout.splitlines()
    assert seen == "1 1" and f"process {os.getpid()} on" in refusal and "is writing to this index" in refusal
    with open_stores(place) as reader:  # type: ignore[attr-defined]
        assert reader.kinds == {"dense"}
        stores.delete(["a"])
        assert len(reader) == 0 and reader.documents([0])[0].id == "a"
        stores.compact()
        assert reader.documents([0]) == {}


@pytest.mark.slow
def test_threads_share_one_object_and_a_lost_server_is_said(make_postgres: MakePostgres, postgres_url: str) -> None:
    stores = make_postgres()
    stores.write(Batch([Document(f"d{n}", "dogs") for n in range(20)], {"s": rows(20)}), replace=False)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                assert len(stores.search_text(["dogs"], 100)[0]) >= 20
                stores.write(Batch([Document(f"t{number}-{turn}", "dogs")], {"s": rows(1)}), replace=False)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and len(stores) == 140 and stores.stats()["generation"] == 121
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^consilience'")
    with pytest.raises(StorageError, match="connection is lost"):
        len(stores)
    assert len(stores) == 140  # the next question has a connection of its own
    with pytest.raises(StorageError, match="the last commit stands: open the index again"):
        stores.delete(["d0"])
    stores.close()
    with PostgresStores(postgres_url, "notes", write=True) as again:
        assert again.delete(["d0"]).deleted == 1


def check(stores: PostgresStores) -> int:
    """Compare everything that can be found with the state of this generation; return the generation."""
    generation = int(stores.stats()["generation"])
    state = state_after(generation)
    expected = {name: document(name, held) for name, held in state.items()}
    assert set(stores.all_ids()) == set(expected) and len(stores) == len(expected)
    queries = np.stack([vector(name, held) for name, held in state.items()]) if state else np.empty((0, 16), np.float32)
    for name, found in zip(state, stores.search_vectors("s", queries, len(IDS)), strict=True):
        documents = stores.documents(found.numbers)
        assert {one.id: one for one in documents.values()} == expected
        assert documents[int(found.numbers[0])].id == name and abs(float(found.scores[0]) - 1) < 1e-5
    for word in WORDS:
        holding = {name for name, held in state.items() if held[0] == word}
        for found in (*stores.search_text([word], len(IDS)), *stores.search_edges([[word]], len(IDS))):
            assert {one.id for one in stores.documents(found.numbers).values()} == holding
    return generation


def write_for_ever(url: str, told: str, fatal: str) -> None:
    """Go on from the state that the index is in; die at the first call of the method of a commit that is `fatal`."""
    from consilience.stores.postgres import writing

    if fatal:
        setattr(writing.Commit, fatal, lambda *_: os.kill(os.getpid(), 9))
    acknowledged = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with PostgresStores(url, "killed", write=True) as stores:
        number = int(stores.stats()["generation"])
        while True:
            kind, state, ids = step(number, state_after(number))
            if kind == "compact":
                stores.compact()
            elif kind == "delete":
                stores.delete(ids)
            else:
                edges = [Edge(name, "has", state[name][0], name) for name in ids]
                vectors = {"s": np.stack([vector(name, state[name]) for name in ids])}
                stores.write(Batch([document(name, state[name]) for name in ids], vectors, edges), replace=True)
            number += 1
            os.write(acknowledged, f"{number}\n".encode())


@pytest.mark.slow
def test_a_killed_writer_leaves_exactly_a_commit(
    make_postgres: MakePostgres, postgres_url: str, tmp_path: Path
) -> None:
    make_postgres("killed").close()
    told = tmp_path / "told"
    told.touch()
    draw = random.Random(5)
    fell = {"before a commit of its life": 0, "within a transaction": 0, "after a commit that it had said": 0}
    last = 0
    for kill in range(KILLS):
        before = told.stat().st_size
        fatal = ["", "", "link", "remove", "finish"][kill % 5] if kill else ""
        call = f"write_for_ever({postgres_url!r}, {str(told)!r}, {fatal!r})"
        code = f"from tests.stores.test_postgres_processes import write_for_ever; {call}"
        process = subprocess.Popen([sys.executable, "-c", code])
        while not fatal and process.poll() is None and told.stat().st_size == before and draw.random() > 0.002:
            time.sleep(0.005)
        if not fatal:
            time.sleep(draw.random() * 0.3)
            assert process.poll() is None, "the writer ended by itself"
            process.kill()
        process.wait(60)
        assert process.returncode == -9
        lines = told.read_text().splitlines()
        said = int(lines[-1]) if lines else 0
        with PostgresStores(postgres_url, "killed", write=True) as stores:
            generation = check(stores)
        assert generation in (said, said + 1), "an acknowledged commit is lost, or one came from nowhere"
        moved = told.stat().st_size > before
        fell[[*fell][1 if fatal or generation > said else 2 if moved else 0]] += 1
        assert generation >= last
        last = generation
    print(f"{KILLS} kills over {last} commits: " + ", ".join(f"{count} {what}" for what, count in fell.items()))
    assert last >= KILLS // 2
