"""Files into an index: interrupted and started again, with edges, without near duplicates, in bounded memory."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from consilience.data.ingestion.edges import normal_entity
from consilience.errors import RequestError
from consilience.retrieval.index import Index
from consilience.retrieval.indexing import Indexed, index_files
from consilience.retrieval.searcher import Searcher


def rows(path: Path, count: int) -> None:
    with path.open("w") as file:
        for n in range(count):
            file.write(
                json.dumps({"id": n, "title": f"Row {n}", "text": f"number {n} of many", "maker": f"Maker {n % 7}"})
            )
            file.write("\n")


def index(files: Path, out: Path, **options: object) -> Indexed:
    return index_files(files, out, **{"encoders": {}, "progress": False, **options})  # type: ignore[arg-type]


def adds_up(done: Indexed) -> bool:
    report, summary = done.report, done.summary()
    return done.pieces == report.added + report.replaced + report.unchanged == summary["pieces"]


def test_an_interrupted_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    rows(tmp_path / "files" / "rows.jsonl", 100)
    encoded: list[str] = []
    real = Index._encoded

    def counted(self: Index, documents: object, progress: object) -> object:
        if len(encoded) >= 60:
            raise KeyboardInterrupt
        encoded.extend(one.id for one in documents)  # type: ignore[attr-defined]
        return real(self, documents, progress)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Index, "_encoded", counted)
        with pytest.raises(KeyboardInterrupt):
            index(tmp_path / "files", tmp_path / "index", edges=["tables"], batch=20)
    with Index.open(tmp_path / "index") as opened:
        assert opened.stats()["documents"] == 60 and opened.stats()["edges"] == 120
    again = index(tmp_path / "files", tmp_path / "index", batch=20)
    assert (again.report.unchanged, again.report.added, again.edges) == (60, 40, 80) and adds_up(again)
    assert index(tmp_path / "files", tmp_path / "index").report.unchanged == 100


@pytest.mark.slow
def test_a_killed_call_goes_on(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    rows(tmp_path / "files" / "rows.jsonl", 4000)
    script = (
        "import sys; from consilience.retrieval.indexing import index_files\n"
        "index_files(sys.argv[1], sys.argv[2], encoders={}, edges=['tables'], batch=40, progress=False)"
    )
    last = 0
    for pause in (0.3, 0.6, 0.9):
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "files"), str(tmp_path / "index")])
        while not (tmp_path / "index" / "consilience.json").exists():
            time.sleep(0.02)
        time.sleep(pause)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with Index.open(tmp_path / "index") as opened:
            stats = opened.stats()
        assert stats["documents"] >= last and stats["edges"] == 2 * stats["documents"]
        last = stats["documents"]
    done = index(tmp_path / "files", tmp_path / "index")
    assert done.report.unchanged == last and done.report.added == 4000 - last and adds_up(done)


def test_edges_are_found_by_the_graph_and_go_with_their_documents(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.md").write_text("# Networks\n\nSee [ports](b.md). Vint Cerf was born in New Haven.")
    (files / "b.md").write_text("# Open ports\n\nList them.")
    with sqlite3.connect(files / "c.db") as database:
        database.executescript(
            "CREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT, town INTEGER REFERENCES towns);"
            "CREATE TABLE towns(id INTEGER PRIMARY KEY, name TEXT, country TEXT);"
            "INSERT INTO towns VALUES (1, 'Haarlem', 'Netherlands'); INSERT INTO people VALUES (5, 'Frans Hals', 1);"
        )
    first = index(files, tmp_path / "index", edges=["links", "tables", "rules"])
    assert first.edges == first.summary()["edges"] > 0 and adds_up(first)
    with Index.open(tmp_path / "index") as opened:
        stats = opened.stats()["edges"]
        search = Searcher(opened, stores=["graph"]).search
        assert stats == first.edges
        assert {hit.id for hit in search(["where was Vint Cerf born?"], 5)[0]} == {"a.md"}
        assert {hit.id for hit in search(["pages about open ports"], 5)[0]} == {"a.md", "b.md"}
        assert "c.db#people.5" in {hit.id for hit in search(["artists of Haarlem"], 5)[0]}
        found = opened.stores.search_edges([[normal_entity("Frans  HALS")]], 5, hops=2)[0]
        assert len(found.numbers) == 2
    (files / "a.md").write_text("# Networks\n\nNothing is here now.")
    (files / "c.db").unlink()
    second = index(files, tmp_path / "index", prune=True)
    assert (second.report.replaced, second.report.deleted, second.edges) == (1, 2, 1)
    with Index.open(tmp_path / "index") as opened:
        search = Searcher(opened, stores=["graph"]).search
        assert not search(["where was Vint Cerf born?"], 5)[0] and not search(["artists of Haarlem"], 5)[0]
        assert {hit.id for hit in search(["pages about open ports"], 5)[0]} == {"b.md"}


def test_settings_stay_and_are_checked(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    text = " ".join(f"word{n}" for n in range(150))
    (files / "a.txt").write_text(text)
    (files / "b.txt").write_text(text + " more")
    with pytest.raises(RequestError, match="no extractor 'rule'"):
        index(files, tmp_path / "index", edges=["rule"])
    with pytest.raises(RequestError, match="similarity"):
        index(files, tmp_path / "index", near_duplicates=3.0)
    assert not (tmp_path / "index").exists()
    first = index(files, tmp_path / "index", near_duplicates=0.9)
    assert first.pieces == 1 and first.reading.counts["near duplicates"] == 1
    second = index(files, tmp_path / "index", edges=["links"])
    assert second.pieces == second.report.unchanged == 1
    assert any(text.startswith("edges: the index was made with none") for text in second.notices)


def test_pruning_spares_files_that_cannot_be_read(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for name in "abc":
        (files / f"{name}.txt").write_text(f"text {name}")
    rows(files / "rows.csv.jsonl", 2)
    index(files, tmp_path / "index")
    (files / "a.txt").unlink()
    (files / "b.txt").unlink()
    (files / "b.txt").symlink_to("nowhere")
    done = index(files, tmp_path / "index", prune=True)
    assert done.report.deleted == 1 and any("not pruned, such as b.txt" in text for text in done.notices)
    with Index.open(tmp_path / "index") as opened:
        assert set(opened.stores.all_ids()) == {"b.txt", "c.txt", "rows.csv.jsonl#0", "rows.csv.jsonl#1"}


def test_ids_given_twice_are_failures(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"id": 1, "text": "one"}\n{"id": 1, "text": "other"}\n{"id": 2, "text": "two"}\n'
    )
    done = index(tmp_path / "a.jsonl", tmp_path / "index")
    assert done.report.added == done.pieces == 2
    assert [one.item for one in done.reading.failures] == ["a.jsonl#1"]
    assert json.loads(json.dumps(done.summary()))["failures"][0]["item"] == "a.jsonl#1"


def test_progress_counts_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path / "rows.jsonl", 100)
    monkeypatch.setattr("consilience.core.progress._LINE_EVERY", 0.0)
    index(tmp_path / "rows.jsonl", tmp_path / "index", batch=25, progress=True)
    lines = capsys.readouterr().err.splitlines()
    early = next(line for line in lines if "25 pieces of 100 pieces" in line)
    assert "pieces/s" in early and "s left" in early
    assert "100 pieces of 100 pieces" in lines[-1]


MEMORY = """
import sys
from pathlib import Path
from consilience.retrieval.indexing import index_files
done = index_files(sys.argv[1], sys.argv[2], encoders={}, edges=["tables"], near_duplicates=0.95, progress=False)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(done.report.added, int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux")
def test_memory_is_bounded(tmp_path: Path) -> None:
    peaks = []
    for count in (5_000, 20_000):
        files = tmp_path / f"files{count}"
        files.mkdir()
        rows(files / "rows.jsonl", count)
        command = [sys.executable, "-c", MEMORY, str(files), str(tmp_path / f"index{count}")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()
        peaks.append(int(out[1]))
        print(f"{count:,} rows: {out[0]} added, peak {out[1]} MB")
    assert peaks[1] - peaks[0] < 60  # MB for 15,000 rows more
