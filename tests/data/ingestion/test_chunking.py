from __future__ import annotations

from consilience.data.documents import Document
from consilience.data.ingestion.chunking import chunk


def test_headings_with_nothing_under_them_are_pieces() -> None:
    text = "# One\n\n## Empty\n\n## Full\n\nsome words here\n\n# Last"
    pieces = chunk(Document("d", text, title="T"), words=3)
    assert [(piece.title, piece.text) for piece in pieces] == [
        ("T > One > Empty", "Empty"),
        ("T > One > Full", "some words here"),
        ("T > Last", "Last"),
    ]
    assert [piece.text for piece in chunk(Document("d", "# a b c"), words=2)] == ["a b", "c"]
