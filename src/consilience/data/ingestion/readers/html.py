"""HTML pages: title, headings, paragraphs, lists and tables, without scripts, styles and navigation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consilience.data.documents import Document, FieldValue, Part
from consilience.data.ingestion.readers.protocol import Item, Notice, clean, title_of
from consilience.errors import DataError, MissingExtraError

__all__ = ["read"]

_LEFT_OUT = ("script", "style", "noscript", "template", "nav", "header", "footer", "aside", "form", "svg")
_BLOCKS = ("h1", "h2", "h3", "h4", "h5", "h6", "p", "pre", "blockquote", "li", "dt", "dd", "table", "figcaption")


def read(path: Path, name: str) -> Iterator[Item]:
    """Yield the document of an HTML file; its encoding is the one it declares, or what its bytes look like."""
    try:
        from bs4 import BeautifulSoup
        from bs4.builder import ParserRejectedMarkup
    except ImportError:
        raise MissingExtraError("bs4", "search") from None
    try:
        page = BeautifulSoup(path.read_bytes(), "html.parser")
    except (ParserRejectedMarkup, RecursionError) as error:
        raise DataError(f"no readable HTML ({type(error).__name__}: {error})") from error
    if page.contains_replacement_characters:
        yield Notice(name, f"bytes that are not {page.original_encoding} were replaced")
    elif page.original_encoding not in ("utf-8", "ascii") and not page.declared_html_encoding:
        yield Notice(name, f"no encoding is declared: read as {page.original_encoding}")
    for tag in page(_LEFT_OUT):
        tag.decompose()
    title = clean(page.title.get_text(" ", strip=True)) if page.title else ""
    body: Any = page.body or page
    parts = [part for tag in body(_BLOCKS) if tag.find_parent(_BLOCKS) is None and (part := _part(tag))]
    if not parts and (text := clean(body.get_text(" ", strip=True))):
        parts = [Part(text)]
    links = tuple(dict.fromkeys(clean(str(tag["href"])) for tag in body("a", href=True)))[:1000]
    fields: dict[str, FieldValue] = {"format": "html", "links": links or None}
    yield Document(name, tuple(parts), title=title or title_of(path), fields=fields, source=name)


def _part(tag: Any) -> Part | None:
    if tag.name == "table":
        rows = [" | ".join(cell.get_text(" ", strip=True) for cell in row(("th", "td"))) for row in tag("tr")]
        text = clean("\n".join(row for row in rows if row.strip(" |")))
        return Part(text, kind="table") if text else None
    text = clean(tag.get_text("" if tag.name == "pre" else " ", strip=tag.name != "pre")).strip()
    if tag.name in _BLOCKS[:6] and text:
        text = f"{'#' * int(tag.name[1])} {text}"
    return Part(text) if text else None
