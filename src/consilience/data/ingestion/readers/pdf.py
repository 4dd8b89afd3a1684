"""PDF files: a part per page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from consilience.data.documents import Document, FieldValue, Part
from consilience.data.ingestion.readers.protocol import Failed, Item, Notice, title_of
from consilience.errors import DataError, MissingExtraError

__all__ = ["read"]


def read(path: Path, name: str) -> Iterator[Item]:
    """Yield the document of a PDF. Pages that cannot be read are failures of their own; the others are kept."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise MissingExtraError("pypdf", "search") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it prints what we report
    try:
        file = PdfReader(path)
        if file.is_encrypted and not file.decrypt(""):
            raise DataError("the file is encrypted; decrypt it first")
        pages = list(file.pages)
        title = str((file.metadata and file.metadata.title) or "").strip()
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise DataError(f"no readable PDF ({type(error).__name__}: {error})") from error
    parts = []
    for number, page in enumerate(pages, 1):
        try:
            text = page.extract_text().replace("\x00", "").strip()
        except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError) as error:
            yield Failed(f"{name} page {number}", f"{type(error).__name__}: {error}")
            continue
        if text:
            parts.append(Part(text.encode("utf-8", "replace").decode(), page=number))
    if pages and not parts:
        yield Notice(name, f"{len(pages)} pages without text; they may be pictures, which are not read")
    fields: dict[str, FieldValue] = {"format": "pdf", "pages": len(pages)}
    yield Document(name, tuple(parts), title=title or title_of(path), fields=fields, source=name)
