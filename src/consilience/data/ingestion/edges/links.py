"""Links of Markdown and HTML files to other files of the folder, and [[wiki links]] to titles.

A document is the head of its links by its title, and their tail by its id (a wiki link's tail is the name it gives);
"title of" leads from one to the other. Links to other sites are left out, and so is what stands in code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

from consilience.data.documents import Document
from consilience.data.ingestion.edges.protocol import Relation, is_row, named, normal_entity

__all__ = ["extract"]

# Lengths are limited, so that long lines of brackets take no longer than their length.
_CODE = re.compile(r"^[ \t]*(```|~~~).*?(^[ \t]*\1[ \t]*$|\Z)|`[^`\n]{1,500}`", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!!)\[[^\[\]\n]{0,300}\]\(\s?<?([^()\s<>]{1,500})>?(?:\s\s?[\"'(][^)\n]{0,300})?\)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\[\]\n^]{1,300}\]:[ \t]?<?([^\s<>]{1,500})>?(?:[ \t].{0,300})?$", re.MULTILINE)
_WIKI = re.compile(r"(?<!!)\[\[([^\[\]|#\n]{1,300})(?:#[^\[\]|\n]{0,300})?(?:\|[^\[\]\n]{0,300})?\]\]")


def extract(document: Document, pieces: Sequence[Document]) -> Iterator[Relation]:
    """Yield where the pieces of a file link to."""
    kind = document.fields.get("format")
    if document.source is None or is_row(document) or not pieces:
        return
    head = normal_entity(document.title)
    yield named(document, pieces[0])
    if kind == "html":
        links = document.fields.get("links")
        for link in links if isinstance(links, tuple) else ():
            if target := _target(str(link), document.source):
                yield Relation(head, "links to", target, pieces[0].id)
    elif kind in ("markdown", "text"):
        for piece in pieces:
            text = _CODE.sub(" ", piece.text)
            for link in [*_INLINE.findall(text), *_REFERENCE.findall(text)] if kind == "markdown" else ():
                if target := _target(link, document.source):
                    yield Relation(head, "links to", target, piece.id)
            for name in _WIKI.findall(text):
                yield Relation(head, "links to", normal_entity(name), piece.id)


def _target(link: str, source: str) -> str:
    """Return the path below the folder that a link in a file leads to; "" where it leads elsewhere."""
    try:
        parts = urlsplit(link.strip())
    except ValueError:
        return ""
    if parts.scheme or parts.netloc or not parts.path:
        return ""
    path = unquote(parts.path, errors="replace")
    if "\x00" in path:
        return ""
    found = normpath(path.lstrip("/") if path.startswith("/") else join(dirname(source), path))
    return "" if found.startswith("..") or found in (".", source) else found
