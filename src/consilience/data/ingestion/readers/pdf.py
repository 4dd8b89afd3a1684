"""PDF files: a part per page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consilience.core.per_item import per_item
from consilience.data.documents import Document, FieldValue, Part
from consilience.data.ingestion.readers.protocol import Failed, Item, Notice, clean, title_of
from consilience.errors import DataError, MissingExtraError

__all__ = ["read"]


def read(path: Path, name: str) -> Iterator[Item]:
    """Yield the document of a PDF. Pages that cannot be read are failures of their own; the others are kept."""
    try:
        from pypdf import PdfReader
    except ImportError:
        raise MissingExtraError("pypdf", "search") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it prints what we report

    def opened(path: Path) -> tuple[list[Any], str]:
        file = PdfReader(path)
        if file.is_encrypted and not file.decrypt(""):
            raise DataError("the file is encrypted; decrypt it first")
        return list(file.pages), str((file.metadata and file.metadata.title) or "").strip()

    # A broken file makes pypdf raise errors of any kind, so every page is an item of its own.
    done, failures = per_item([path], opened)
    if failures:
        raise DataError(f"no readable PDF ({failures[0].error})")
    pages, title = done[0]
    parts = []
    for number, page in enumerate(pages, 1):
        texts, failures = per_item([page], _text)
        for failure in failures:
            yield Failed(f"{name} page {number}", failure.error, part=True)
        parts += [Part(text, page=number) for text in texts if text]
    if pages and not parts:
        yield Notice(name, f"{len(pages)} pages without text; they may be pictures, which are not read")
    fields: dict[str, FieldValue] = {"format": "pdf", "pages": len(pages)}
    yield Document(name, tuple(parts), title=clean(title) or title_of(path), fields=fields, source=name)


def _text(page: Any) -> str:
    return clean(page.extract_text()).strip()
