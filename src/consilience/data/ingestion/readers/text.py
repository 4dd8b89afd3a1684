"""Plain text and Markdown: a file is a document, a heading starts a part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from consilience.data.documents import Document, Part
from consilience.data.ingestion.readers.protocol import Item, Notice, decoded, title_of

__all__ = ["read"]

_HEADING = re.compile(r"^(#{1,6})\s+(.+?)\s*#*\s*$")
_FENCE = re.compile(r"^\s*(```|~~~)")
_ROW = re.compile(r"^\s*\|.*\|\s*$")


def read(path: Path, name: str) -> Iterator[Item]:
    """Yield the document of a text file, with what had to be done to read it."""
    for found in decoded(path.read_bytes(), name):
        if isinstance(found, Notice):
            yield found
        elif path.suffix.lower() in (".md", ".markdown"):
            yield _markdown(found, path, name)
        elif found.strip():
            yield Document(name, found.strip(), title=title_of(path), fields={"format": "text"}, source=name)


def _markdown(text: str, path: Path, name: str) -> Document:
    parts: list[Part] = []
    lines: list[str] = []
    title, code, table = "", False, False

    def flush(kind: str = "text") -> None:
        joined = "\n".join(lines).strip()
        if joined:
            parts.append(Part(joined, kind="table" if kind == "table" else "text"))
        lines.clear()

    for line in text.splitlines():
        if _FENCE.match(line):
            code = not code
        heading = None if code else _HEADING.match(line)
        row = not code and _ROW.match(line) is not None
        if heading or row != table:
            flush("table" if table else "text")
        table = row
        if heading and not title and len(heading[1]) == 1:
            title = heading[2]
        else:
            lines.append(line)
    flush("table" if table else "text")
    return Document(name, tuple(parts), title=title or title_of(path), fields={"format": "markdown"}, source=name)
