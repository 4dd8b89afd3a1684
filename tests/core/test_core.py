"""Hashing, records, executor, progress, per-item work."""

import io
import os

import pytest

from consilience.core.executor import run_tasks
from consilience.core.hashing import canonical_json, file_xxh3, fingerprint, xxh3_hex
from consilience.core.per_item import per_item
from consilience.core.progress import Progress
from consilience.core.records import read_record, write_record
from consilience.errors import RequestError


def square(x):
    return x * x


def boom(x):
    if x == 2:
        raise ValueError("two")
    return x


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks(kind, workers):
    assert list(run_tasks(square, [5, 3, 1], workers=workers, kind=kind)) == [(0, 25), (1, 9), (2, 1)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_stops_the_rest(workers):
    seen = []

    def work(x):
        seen.append(x)
        return boom(x)

    with pytest.raises(ValueError, match="two"):
        list(run_tasks(work, range(200), workers=workers))
    assert len(seen) < 200


def test_hashes_and_records(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 10)
    assert file_xxh3(tmp_path / "f", block=7) == xxh3_hex(b"abc" * 10)
    assert canonical_json({"b": [1, 2.5], "a": None}) == b'{"a":null,"b":[1,2.5]}'
    assert fingerprint({"x": 1}) != fingerprint({"x": 2})
    write_record(tmp_path / "r.json", "thing", 1, {"n": 1})
    assert read_record(tmp_path / "r.json", "thing", 1)["n"] == 1
    with pytest.raises(RequestError, match="expected 'consilience/other'"):
        read_record(tmp_path / "r.json", "other", 1)
    write_record(tmp_path / "r.json", "thing", 9, {})
    with pytest.raises(RequestError, match="version 9"):
        read_record(tmp_path / "r.json", "thing", 1)
    with pytest.raises(RequestError, match="no such file"):
        read_record(tmp_path / "absent", "thing", 1)
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(RequestError, match="not valid JSON"):
        read_record(tmp_path / "r.json", "thing", 1)


def test_progress_prints_lines_off_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("consilience.core.progress._LINE_EVERY", 0.0)
    with Progress(10, "B", "merging") as progress:
        progress.skip(4)
        progress.advance(3)
    lines = stream.getvalue().splitlines()
    assert lines[-1].startswith("merging: 7 B of 10 B") and "left" in lines[-1]


def test_progress_draws_a_bar_on_a_terminal():
    controller, terminal = os.openpty()
    code = (
        "from consilience.core.progress import Progress\n"
        "with Progress(2, 'tensors', 'merging') as p:\n"
        "    p.advance(1); p.advance(1)\n"
    )
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(controller, 65536):
            shown += part
    except OSError:
        pass
    os.close(controller)
    assert b"merging" in shown and b"tensors" in shown


def test_per_item_counts_what_failed():
    results, failures = per_item([1, 2, 3], boom)
    assert results == [1, 3] and failures[0].index == 1 and "two" in failures[0].error
