"""Writers killed at random moments: what is found afterwards is exactly a committed state, in every store."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from consilience.data.documents import Document
from consilience.errors import StorageError
from consilience.stores.embedded import EmbeddedStores
from consilience.stores.protocol import Batch, VectorSpace
from tests.stores.writer import IDS, WORDS, document, state_after, vector

KILLS = 60
LONGEST = 1.2  # seconds that a writer lives at the most, after it has opened the index


def check(stores: EmbeddedStores) -> int:
    """Compare everything that can be found with the state of this generation; return the generation."""
    generation = stores.table.snapshot().generation
    state = state_after(generation)
    expected = {name: document(name, held) for name, held in state.items()}
    assert set(stores.all_ids()) == set(expected)
    queries = np.stack([vector(name, held) for name, held in state.items()]) if state else np.empty((0, 16), np.float32)
    for name, found in zip(state, stores.search_vectors("s", queries, len(IDS)) if state else (), strict=True):
        numbers = found.numbers.tolist()
        documents = stores.documents(numbers)
        assert {one.id: one for one in documents.values()} == expected
        assert documents[numbers[0]].id == name and abs(float(found.scores[0]) - 1) < 1e-5
    for word in WORDS:
        holding = {name for name, held in state.items() if held[0] == word}
        (by_text,) = stores.search_text([word], len(IDS))
        (by_edge,) = stores.search_edges([[word]], len(IDS))
        for found in (by_text, by_edge):
            assert {one.id for one in stores.documents(found.numbers).values()} == holding
    return generation


@pytest.mark.slow
def test_a_killed_writer_leaves_exactly_a_commit(tmp_path: Path) -> None:
    folder, told = tmp_path / "index", tmp_path / "told"
    EmbeddedStores.create(folder, [VectorSpace("s", 16)]).close()
    told.touch()
    draw = random.Random(5)
    fell = {"before the first commit of its life": 0, "between commits": 0, "after a commit was said": 0}
    last = 0
    for _ in range(KILLS):
        before = told.stat().st_size
        process = subprocess.Popen([sys.executable, "-m", "tests.stores.writer", str(folder), str(told)])
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end and told.stat().st_size == before:
            time.sleep(0.001)
            if draw.random() < 0.0005:
                break  # some die before they have done anything
        time.sleep(draw.random() * LONGEST)
        assert process.poll() is None, "the writer ended by itself"
        process.kill()
        process.wait()
        lines = told.read_text().splitlines()
        said = int(lines[-1]) if lines else 0
        with EmbeddedStores(folder) as stores:
            generation = check(stores)
        assert generation in (said, said + 1), "an acknowledged commit is lost, or one came from nowhere"
        moved = told.stat().st_size > before
        kind = "between commits" if generation == said + 1 else "after a commit was said"
        fell[kind if moved else "before the first commit of its life"] += 1
        assert generation >= last
        last = generation
    with EmbeddedStores(folder, write=True) as stores:
        stores.compact()
        names = {name for name, *_ in stores.table.snapshot().segments}
        left = {path.name.split(".")[0] for path in (folder / "vectors").rglob("*.npy")}
        assert left == names
    print(f"{KILLS} kills over {last} commits: " + ", ".join(f"{count} {what}" for what, count in fell.items()))
    assert last > KILLS


def _limited(folder: str) -> None:
    """Write with a limit on the size of files, as a full disk would set."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with EmbeddedStores(Path(folder), write=True) as stores:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        many = [Document(f"n{n}", f"word{n} " * 40) for n in range(400)]
        try:
            stores.write(Batch(many, {"s": np.ones((400, 16), np.float32)}), replace=False)
        except StorageError as error:
            print("storage:", error)


def test_no_room_leaves_the_last_commit(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with EmbeddedStores.create(folder, [VectorSpace("s", 16)]) as stores:
        stores.write(Batch([Document("a", "dogs")], {"s": np.ones((1, 16), np.float32)}), replace=False)
    code = f"from tests.stores.test_kills import _limited; _limited({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "storage:" in done.stdout, done.stderr
    with EmbeddedStores(folder, write=True) as stores:
        assert stores.all_ids() == ["a"] and len(stores.search_text(["word1"], 5)[0]) == 0
        stores.write(Batch([Document("b", "cats")], {"s": np.ones((1, 16), np.float32)}), replace=False)
        assert len(stores.search_text(["cats dogs"], 5)[0]) == 2
