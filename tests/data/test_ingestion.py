from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.documents import Document, Part
from consilience.data.ingestion.chunking import chunk
from consilience.data.ingestion.reading import Reading
from consilience.errors import DataError, RequestError


def pdf(text: str) -> bytes:
    """Write the smallest PDF with a page of text."""
    stream = f"BT /F 12 Tf 20 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (table, len(out))
    return out + end


def read(folder: Path, **options: bool) -> tuple[dict[str, Document], Reading]:
    reading = Reading(folder, **options)
    return {one.id: one for one in reading}, reading


def test_every_kind_of_file_becomes_documents(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("Plain text.")
    (tmp_path / "sub" / "b.md").write_text(
        "# Lists\n\nSort.\n\n| a | b |\n|---|---|\n\n```\n# no heading\n```\n## End\nx"
    )
    page = "<title>T</title><script>no()</script><nav>no</nav><h2>Head</h2><p>One <b>two</b>.</p>"
    page += "<table><tr><td>1</td><td>2</td></tr></table><a href='x.html'>l</a>"
    (tmp_path / "c.html").write_text(page)
    (tmp_path / "d.pdf").write_bytes(pdf("Open ports by page"))
    (tmp_path / "e.jsonl").write_text('{"id": "x", "text": "one", "year": 2020, "deep": {"a": 1}}\n\n{"text": "two"}\n')
    (tmp_path / "f.csv").write_text('title,plot,code\nFilm,"A heist,\nof gold",007\n')
    with sqlite3.connect(tmp_path / "g.db") as database:
        database.execute("CREATE TABLE shops(id INTEGER, name TEXT, city TEXT)")
        database.execute("INSERT INTO shops VALUES (3, 'Corner', 'Bonn')")
    found, reading = read(tmp_path)
    assert not reading.failures
    assert found["a.txt"].text == "Plain text." and found["a.txt"].title == "a"
    markdown = found["sub/b.md"]
    assert markdown.title == "Lists" and [part.kind for part in markdown.parts] == ["text", "table", "text", "text"]
    assert "# no heading" in markdown.parts[2].text and markdown.parts[3].text == "## End\nx"
    html = found["c.html"]
    assert html.title == "T" and [part.text for part in html.parts] == ["## Head", "One two .", "1 | 2"]
    assert html.fields["links"] == ("x.html",) and html.parts[2].kind == "table"
    assert found["d.pdf"].parts == (Part("Open ports by page", page=1),)
    assert found["e.jsonl#x"].fields == {"year": 2020} and found["e.jsonl#2"].text == "two"
    assert found["f.csv#1"].title == "Film" and "plot: A heist,\nof gold" in found["f.csv#1"].text
    assert found["f.csv#1"].fields["code"] == "007"
    assert found["g.db#shops.3"].title == "Corner" and found["g.db#shops.3"].fields["table"] == "shops"
    assert reading.counts["documents"] == len(found) == 8 and reading.counts["files"] == 7


def test_nothing_in_a_file_is_fatal_and_everything_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.md").write_text(" \n ")
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    (tmp_path / "marked.txt").write_bytes("Größe".encode("utf-16"))
    (tmp_path / "long.txt").write_text("word " * 200_000)
    (tmp_path / "broken.pdf").write_bytes(pdf("x")[:60])
    (tmp_path / "no.pdf").write_bytes(b"hello")
    (tmp_path / "bad.jsonl").write_text('{"text": "ok"}\nnot json\n[1]\n{}\n')
    (tmp_path / "bad.csv").write_text("a,b\n1\n1,2\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "bad.db").write_bytes(b"no database at all, only bytes" * 10)
    (tmp_path / "what.xyz").write_text("?")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "zero.txt").write_bytes(b"a\x00b")
    found, reading = read(tmp_path)
    assert set(found) == {"latin.txt", "marked.txt", "long.txt", "bad.jsonl#1", "bad.csv#2", "zero.txt"}
    assert found["latin.txt"].text == found["marked.txt"].text == "Größe" and found["zero.txt"].text == "ab"
    failed = {one.item for one in reading.failures}
    assert failed == {
        "broken.pdf", "no.pdf", "bad.jsonl line 2", "bad.jsonl line 3", "bad.jsonl#4", "bad.csv line 2", "bad.parquet",
        "bad.db",
    }  # fmt: skip
    noted = {one.item for one in reading.notices}
    assert {"empty.txt", "blank.md", "latin.txt", "what.xyz"} <= noted
    counts = reading.counts
    assert counts["files"] == 13 and counts["empty"] == 2 and counts["failed"] == 8 and counts["of no known kind"] == 1


def test_copies_are_counted_and_can_be_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.txt").write_text("the same text")
    assert len(read(tmp_path)[0]) == 2
    found, reading = read(tmp_path, copies=False)
    assert list(found) == ["a/same.txt"] and reading.counts["copies"] == 1
    with pytest.raises(DataError, match="no such file"):
        Reading(tmp_path / "nowhere")


def test_parquet_and_plain_json_lines_of_documents(tmp_path: Path) -> None:
    import pandas

    pandas.DataFrame({"_id": ["q1"], "title": ["T"], "text": ["body"], "n": [float("nan")]}).to_parquet(
        tmp_path / "corpus.parquet"
    )
    (tmp_path / "rows.ndjson").write_text(json.dumps({"text": "x", "tags": ["a", "b"], "id": 5}))
    found, _ = read(tmp_path)
    assert found["corpus.parquet#q1"].text == "body" and found["corpus.parquet#q1"].fields == {}
    assert found["rows.ndjson#5"].fields["tags"] == ("a", "b")


def test_pieces_keep_headings_pages_and_fields() -> None:
    parts = (
        Part("# One\n\n" + "a b c. " * 4, page=1),
        Part("x | y\nz | w", kind="table", page=2),
        Part("## Two\nend", page=3),
    )
    pieces = chunk(Document("d", parts, title="T", fields={"n": 1}), words=7)
    assert [piece.id for piece in pieces] == [f"d#{n}" for n in range(1, len(pieces) + 1)]
    assert all(piece.parent == "d" and piece.fields == {"n": 1} for piece in pieces)
    assert [piece.title for piece in pieces][-1] == "T > One > Two" and pieces[-1].parts[0].page == 3
    assert any(part.kind == "table" for piece in pieces for part in piece.parts)
    short = Document("s", "a few words")
    assert chunk(short) == [short]
    with pytest.raises(RequestError, match="overlap"):
        chunk(short, words=3, overlap=3)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("ab .#\n|!?", max_size=60), min_size=1, max_size=5),
    st.sampled_from(["structure", "sentences", "fixed"]),
    st.integers(1, 9),
)
def test_pieces_lose_no_words_and_are_never_too_long(texts: list[str], how: str, words: int) -> None:
    document = Document("d", tuple(Part(text) for text in texts))
    pieces = chunk(document, how, words=words)  # type: ignore[arg-type]
    if pieces == [document]:
        return
    assert all(len(piece.text.split()) <= words for piece in pieces)
    joined = " ".join(f"{piece.title} {piece.text}" for piece in pieces).split()
    assert {word for word in document.text.split() if set(word) & set("ab")} <= set(joined) | set("#")
