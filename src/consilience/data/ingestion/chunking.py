"""Documents into pieces that fit an encoder: by structure, by sentences, or of a fixed size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from consilience.data.documents import Document, Part
from consilience.errors import RequestError

__all__ = ["Chunking", "chunk"]

Chunking = Literal["structure", "sentences", "fixed", "none"]

_SENTENCE = re.compile(r"(?<=[.!?…。！？])[\"'»”)\]]*\s+")
_PARAGRAPH = re.compile(r"\n\s*\n")
_HEADING = re.compile(r"^(#{1,6})\s+(.+)$")


def chunk(document: Document, how: Chunking = "structure", *, words: int = 200, overlap: int = 0) -> list[Document]:
    """Return a document as pieces of at most `words` words, or itself where it has no more.

    >>> text = "# Lists\\n\\nSort them. Reverse them.\\n\\n# Files\\n\\nOpen them."
    >>> pieces = chunk(Document("guide", text, title="Guide"), words=4)
    >>> [(piece.id, piece.title, piece.text) for piece in pieces]
    [('guide#1', 'Guide > Lists', 'Sort them. Reverse them.'), ('guide#2', 'Guide > Files', 'Open them.')]

    "structure" cuts at headings (`# ...`), parts and paragraphs, and puts small ones of the same heading together; a
    paragraph that is too long is cut into sentences, a sentence into words. Titles get the path of headings. A piece
    keeps page, box and span of its parts. "sentences" packs sentences regardless of paragraphs; "fixed" counts words,
    with an `overlap`. Pieces have the document's fields, its id as `parent`, and ids with "#" and a number from 1.

    Raises RequestError for sizes below 1 and an overlap that is not smaller.
    """
    if words < 1 or not 0 <= overlap < words:
        raise RequestError(f"words {words}, overlap {overlap}: at least 1, and the overlap smaller")
    if how not in ("structure", "sentences", "fixed", "none"):
        raise RequestError(f"chunks {how!r}: there are structure, sentences, fixed, none")
    if how == "none" or len(document.text.split()) <= words:
        return [document]
    if how == "structure":
        pieces = list(_structured(document, words))
    else:
        units = document.text.split() if how == "fixed" else _SENTENCE.split(document.text)
        texts = _windows(units, words, overlap) if how == "fixed" else _packed(units, words)
        pieces = [(document.title, (Part(text),)) for text in texts]
    return [
        replace(
            document,
            id=f"{document.id}#{number}",
            content=parts if len(parts) > 1 or _placed(parts[0]) else parts[0].text,
            title=title,
            parent=document.id,
        )
        for number, (title, parts) in enumerate(pieces, 1)
    ]


def _placed(part: Part) -> bool:
    return part != Part(part.text)


def _windows(words: list[str], size: int, overlap: int) -> Iterator[str]:
    for start in range(0, max(len(words) - overlap, 1), size - overlap):
        yield " ".join(words[start : start + size])


def _packed(units: list[str], size: int) -> Iterator[str]:
    """Yield units joined up to `size` words; a unit that is longer is cut."""
    held: list[str] = []
    count = 0
    for unit in units:
        length = len(unit.split())
        if held and count + length > size:
            yield " ".join(held)
            held, count = [], 0
        if length > size:
            yield from _windows(unit.split(), size, 0)
        elif length:
            held.append(unit.strip())
            count += length
    if held:
        yield " ".join(held)


def _structured(document: Document, size: int) -> Iterator[tuple[str, tuple[Part, ...]]]:
    """Yield (title, parts) of pieces; a heading with nothing under it is a piece of its own."""
    path: list[tuple[int, str]] = []
    bare: Part | None = None  # the part of the last heading, while nothing has come under it
    held: list[Part] = []
    count = 0

    def title() -> str:
        return " > ".join(filter(None, [document.title, *(name for _, name in path)]))

    def alone() -> Iterator[tuple[str, tuple[Part, ...]]]:
        if bare is not None:
            for piece in _packed([path[-1][1]], size):
                yield title(), (replace(bare, text=piece),)

    for part in document.parts:
        for text in _PARAGRAPH.split(part.text):
            lines = text.strip().splitlines()
            while lines and part.kind == "text" and (heading := _HEADING.match(lines[0])):
                if held:
                    yield title(), tuple(held)
                    held, count = [], 0
                level = len(heading[1])
                if bare is not None and path[-1][0] >= level:
                    yield from alone()
                path = [one for one in path if one[0] < level] + [(level, heading[2].strip())]
                bare = part
                lines = lines[1:]
            body = "\n".join(lines).strip()
            length = len(body.split())
            if length:
                bare = None
            if held and count + length > size:
                yield title(), tuple(held)
                held, count = [], 0
            if length > size:
                units = body.splitlines() if part.kind == "table" else _SENTENCE.split(body)
                for piece in _packed(units, size):
                    yield title(), (replace(part, text=piece),)
            elif length:
                held.append(replace(part, text=body))
                count += length
    if held:
        yield title(), tuple(held)
    yield from alone()
