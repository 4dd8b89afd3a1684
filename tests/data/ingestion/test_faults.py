"""What can be wrong with files and folders: all of it is said, none of it ends the work, and the counts add up."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.documents import Document
from consilience.data.ingestion.reading import Reading

LEFT = ("empty", "of no known kind", "near duplicates", "links not followed", "failed")


def read(path: Path, **options: bool) -> tuple[list[Document], Reading]:
    reading = Reading(path, **options)
    return list(reading), reading


def adds_up(reading: Reading) -> bool:
    counts = reading.counts
    left = sum(counts[name] for name in LEFT) + (0 if reading.copies else counts["copies"])
    return counts["items"] == counts["documents"] + left


def encrypted(password: str) -> bytes:
    from pypdf import PdfWriter

    writer, out = PdfWriter(), io.BytesIO()
    writer.add_blank_page(100, 100)
    writer.encrypt(password, algorithm="RC4-128")
    writer.write(out)
    return out.getvalue()


def test_links_pipes_and_files_that_are_not_there(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.txt").write_text(f"text in {folder.name}")
    (inside / "circle.txt").symlink_to("circle.txt")
    (inside / "broken.txt").symlink_to("nothing.txt")
    (inside / "loop").symlink_to(inside)
    (inside / "far.txt").symlink_to(outside / "a.txt")
    (inside / "near.txt").symlink_to("a.txt")
    os.mkfifo(inside / "pipe.txt")
    found, reading = read(inside)
    assert [one.id for one in found] == ["a.txt", "near.txt"] and found[0].text == found[1].text == "text in in"
    assert {one.item for one in reading.failures} == {"broken.txt", "circle.txt", "pipe.txt"}
    assert {one.item for one in reading.notices} >= {"loop", "far.txt"} and reading.counts["links not followed"] == 2
    assert adds_up(reading) and reading.expected() == 7


def test_files_and_folders_without_permission(tmp_path: Path) -> None:
    (tmp_path / "fine.txt").write_text("text")
    read(tmp_path)  # imports what reading needs, while everything may be read
    with as_ordinary_user() as folder:
        (folder / "a.txt").write_text("text")
        (folder / "b").mkdir(mode=0)
        (folder / "a.txt").chmod(0)
        _, reading = read(folder)
    assert {one.item for one in reading.failures} == {"a.txt", "b"} and adds_up(reading)


@contextmanager
def as_ordinary_user() -> Iterator[Path]:
    """A folder of a user whom permissions hold for; root is nobody meanwhile."""
    nobody = 65534
    with tempfile.TemporaryDirectory(prefix="consilience-") as folder:
        if os.geteuid() == 0:
            os.chown(folder, nobody, nobody)
            os.seteuid(nobody)
            try:
                yield Path(folder)
            finally:
                os.seteuid(0)
        else:
            yield Path(folder)


def test_what_the_system_refuses_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.csv").write_text("a\n1\n")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "c.txt").write_text("text")
    real_open, real_scan = Path.open, os.scandir

    def refuse(self: Path, *args: object, **options: object) -> object:
        if self.name == "b.csv":
            raise PermissionError(13, "Permission denied", str(self))
        return real_open(self, *args, **options)  # type: ignore[call-overload]

    def scan(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real_scan(path)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "scandir", scan)
    found, reading = read(tmp_path)
    assert [one.id for one in found] == ["a.txt"] and adds_up(reading)
    assert [(one.item, "ermission denied" in one.error) for one in reading.failures] == [
        ("b.csv", True),
        ("locked", True),
    ]
    assert reading.unread("locked/c.txt") and reading.unread("b.csv#1") and not reading.unread("a.txt")


def test_files_that_vanish_or_change_meanwhile(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    reading, found = Reading(tmp_path), []
    for document in reading:
        found.append(document.id)
        if document.id == "a.jsonl#1":
            (tmp_path / "b.jsonl").unlink()
        if document.id == "c.jsonl#1":
            with (tmp_path / "c.jsonl").open("a") as file:
                file.write('{"text": "three"}\n')
    assert "b.jsonl#1" not in found and reading.failures[0].item == "b.jsonl"
    assert any(one.item == "c.jsonl" and "changed" in one.text for one in reading.notices) and reading.unread(
        "c.jsonl#9"
    )
    assert adds_up(reading)


def test_broken_bytes_names_and_rows(tmp_path: Path) -> None:
    (tmp_path / "locked.pdf").write_bytes(encrypted("secret"))
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    (tmp_path / "header.csv").write_text("a,b\n")
    (tmp_path / "twice.csv").write_text("a,a,title\n1,2,x\0y\n")
    (tmp_path / "wide.csv").write_bytes("name,text\nZoë,ça\n".encode("utf-16"))
    (tmp_path / "latin.csv").write_bytes("name,text\nZoë,ça\n".encode("latin-1"))
    (tmp_path / "lines.jsonl").write_bytes('{"text": "ça"}\n{"text": "va"}\n'.encode("utf-16"))
    (tmp_path / "deep.jsonl").write_text(
        "[" * 100_000 + '\n{"text": "\\ud800"}\n{"text": "ok", "n": 1e999}\n{"text": "ok"}'
    )
    (tmp_path / "page.html").write_bytes(b"<p>caf\xe9 a\x00b</p>")
    (tmp_path / "odd.html").write_bytes(b"<![if x]><p>text</p><!")
    (tmp_path / "nested.html").write_text("<div>" * 5000 + "x")
    (tmp_path / os.fsdecode(b"n\xffame.txt")).write_text("text of a file with a strange name")
    found, reading = read(tmp_path)
    texts = {one.id: one for one in found}
    assert texts["n\\xffame.txt"].text.startswith("text of") and texts["page.html"].text == "café ab"
    assert texts["wide.csv#1"].text == texts["latin.csv#1"].text == "ça" and texts["wide.csv#1"].title == "Zoë"
    assert texts["lines.jsonl#1"].text == "ça" and texts["deep.jsonl#4"].text == "ok"
    failed = {one.item for one in reading.failures}
    assert {"locked.pdf", "deep.jsonl line 1", "deep.jsonl#2", "deep.jsonl#3"} <= failed
    noted = {one.item for one in reading.notices}
    assert {"blank.txt", "header.csv", "twice.csv", "latin.csv", "page.html"} <= noted
    assert adds_up(reading)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["txt", "md", "html", "pdf", "jsonl", "csv", "tsv", "parquet", "db"]),
    st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)),
    st.sampled_from(
        [b"", b"%PDF-1.4\n", b"a,b\n", b'{"text": "x"}\n', b"PAR1", b"SQLite format 3\0", b"\xff\xfe", b"<p>"]
    ),
)
def test_no_bytes_end_the_reading(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: bytes, start: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / f"a.{suffix}").write_bytes(start + data)
    (folder / "z.txt").write_text("the last one")
    found, reading = read(folder)
    assert found[-1].id == "z.txt" and adds_up(reading) and reading.counts["files"] == 2


def test_long_lines_and_wide_rows(tmp_path: Path) -> None:
    (tmp_path / "line.md").write_text("word " * 250_000)
    (tmp_path / "row.jsonl").write_text('{"text": "' + "w" * 1_200_000 + '"}')
    (tmp_path / "row.csv").write_text("text\n" + "v " * 600_000 + "\n")
    (tmp_path / "page.html").write_text("<p>" + "u " * 600_000)
    found, reading = read(tmp_path)
    assert len(found) == 4 and min(len(one.text) for one in found) > 1_000_000 and adds_up(reading)
