"""What a reader of files is given and yields."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilience.data.documents import Document
from consilience.errors import DataError

__all__ = ["Failed", "Item", "Notice", "clean", "decoded", "encoding_of", "row_document", "title_of"]

_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_BLOCK = 1 << 20  # bytes
_ID = ("_id", "id")
_TITLE = ("title", "name", "heading")
_TEXT = ("text", "content", "body", "contents", "abstract", "description")


@dataclass(frozen=True)
class Notice:
    """Something about an item that is worth saying but no reason to leave it out."""

    item: str
    text: str


@dataclass(frozen=True)
class Failed:
    """A row or a page that could not be read; the rest of its file goes on.

    part: it is a piece of a document that is read nevertheless, such as a page.
    """

    item: str
    error: str
    part: bool = False


Item = Document | Notice | Failed


def decoded(data: bytes, name: str) -> Iterator[str | Notice]:
    """Yield the text of bytes: UTF-8 with or without mark, UTF-16 with mark, else Windows-1252, with a notice.

    >>> list(decoded(b"caf\\xe9", "a.txt"))[-1]
    'café'
    """
    encoding = _marked(data)
    try:
        yield data.decode(encoding).replace("\x00", "")
    except UnicodeDecodeError as error:
        yield Notice(name, f"no {encoding} at byte {error.start}: read as Windows-1252")
        yield data.decode("cp1252", errors="replace").replace("\x00", "")


def _marked(data: bytes) -> str:
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")


def encoding_of(path: Path) -> tuple[str, int, int]:
    """Return the encoding of a file, its number of line ends, and the first byte that is not UTF-8, or -1.

    Found in one pass with bounded memory; the encoding is "cp1252" where a byte is in no other.
    """
    wrong, ends, place = -1, 0, 0
    with path.open("rb") as file:
        encoding = _marked(file.read(3))
        file.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)()
        while block := file.read(_BLOCK):
            ends += block.count(b"\n")
            if wrong < 0:
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    wrong = place + error.start
            place += len(block)
    return ("cp1252" if wrong >= 0 else encoding), ends, wrong


def row_document(row: dict[str, Any], name: str, source: str) -> Document:
    """Return a row as a document: its id, title and text by the usual names of columns, the others as fields.

    >>> row_document({"_id": 7, "title": "Film", "text": "A heist.", "year": 1999}, "films.csv#1", "films.csv")
    Document(id='films.csv#7', content='A heist.', title='Film', fields=mappingproxy({'year': 1999}), parent=None, \
source='films.csv')

    Without a column of text, the text is "column: value" of all columns, a line each. Raises DataError for a row with
    nothing in it.
    """
    row = {str(key): value for key, value in row.items() if value is not None and value == value and value != ""}
    if not row:
        raise DataError("the row is empty")
    key, title = (next((one for one in names if one in row), None) for names in (_ID, _TITLE))
    text = next((one for one in _TEXT if isinstance(row.get(one), str)), None)
    if text is None:
        content = "\n".join(f"{one}: {value}" for one, value in row.items() if one not in (key, title))
    else:
        content = row[text]
    own = name if key is None else f"{source}#{row[key]}"
    others = {one: _plain(value) for one, value in row.items() if one not in (key, title, text)}
    fields = {_field(one): value for one, value in others.items() if value is not None}
    return Document(
        own,
        content.replace("\x00", ""),
        title=str(row[title]).replace("\x00", "") if title else "",
        fields=fields,
        source=source,
    )


def _field(name: str) -> str:
    clean = "".join(c for c in name if c.isprintable() and c not in '"`') or "column"
    return f"{clean}_" if clean in ("id", "parent", "title", "source") else clean


def _plain(value: Any) -> Any:
    """Return a value as fields hold it: dates as texts, numbers of NumPy as Python's, lists of such, else None."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, list | tuple):
        found = [_plain(one) for one in value]
        return tuple(found) if all(isinstance(one, str | int | float | bool) for one in found) else None
    return None


def clean(text: str) -> str:
    """Return a text without zero characters and halves of surrogate pairs, which no store holds.

    >>> clean("a\\x00b\\ud800")
    'ab?'
    """
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def title_of(path: Path) -> str:
    """Return the name of a file as a title.

    >>> title_of(Path("notes/open_ports.md"))
    'open ports'
    """
    stem = os.fsencode(path.stem).decode("utf-8", "backslashreplace")  # a name need not be UTF-8
    return stem.replace("_", " ").replace("-", " ").strip()
