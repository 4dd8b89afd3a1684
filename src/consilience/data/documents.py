"""Documents: ordered parts of text, images and tables, with fields that can be filtered by."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from consilience.core.hashing import xxh3_hex
from consilience.errors import DataError, Problems

__all__ = ["Document", "FieldValue", "Part", "Scalar", "check_documents"]

Scalar = str | int | float | bool
FieldValue = Scalar | tuple[Scalar, ...] | None

_KINDS = ("text", "image", "table")
_OWN = ("id", "parent", "title", "source")
_LARGEST = 1 << 63


@dataclass(frozen=True)
class Part:
    """A piece of a document in reading order: its kind, its text, and where it is.

    >>> Part("Total: 12", kind="table", page=3).page
    3

    text: what is searched (of an image: its caption; of a table: its rows). page from 1; box: left, top, right, bottom
    in points; span: start and end in seconds; media: path of the image, sound or film.
    """

    text: str
    kind: Literal["text", "image", "table"] = "text"
    page: int | None = None
    box: tuple[float, float, float, float] | None = None
    span: tuple[float, float] | None = None
    media: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the part as plain data, without what is not given."""
        found: dict[str, Any] = {"text": self.text, "kind": self.kind}
        for name in ("page", "box", "span", "media"):
            value = getattr(self, name)
            if value is not None:
                found[name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Part:
        """Make a part of plain data. Raises DataError for unknown kinds and keys."""
        unknown = set(content) - {"text", "kind", "page", "box", "span", "media"}
        if unknown or content.get("kind", "text") not in _KINDS or not isinstance(content.get("text"), str):
            raise DataError(f"a part has a text, a kind ({', '.join(_KINDS)}), page, box, span, media; found {content}")
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        return cls(**given)


@dataclass(frozen=True)
class Document:
    """What is indexed and found: an id, a text in parts, and fields.

    >>> document = Document("d1", "Sort a list in place.", title="list.sort", fields={"year": 2024, "tags": ("py",)})
    >>> document.text, document.full_text
    ('Sort a list in place.', 'list.sort Sort a list in place.')
    >>> Document.from_dict(document.to_dict()) == document
    True

    text: a string, or parts. fields: names to texts, numbers, truth values, lists of these, or None (as if absent).
    parent: the id of the document this is a piece of. source: the file or address it came from.
    """

    id: str
    content: str | tuple[Part, ...]
    title: str = ""
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    parent: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        kept = {key: tuple(value) if isinstance(value, list) else value for key, value in self.fields.items()}
        object.__setattr__(self, "fields", MappingProxyType(kept))
        if isinstance(self.content, list):
            object.__setattr__(self, "content", tuple(self.content))

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return Document.from_dict, (self.to_dict(),)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts in reading order."""
        return (Part(self.content),) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The text of all parts, a line each."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)

    @property
    def full_text(self) -> str:
        """The title, a space and the text: what is encoded and searched."""
        return f"{self.title} {self.text}" if self.title else self.text

    @property
    def digest(self) -> str:
        """The checksum of everything in the document but its id."""
        return xxh3_hex(json.dumps({**self.to_dict(), "id": ""}, sort_keys=True).encode())

    def to_dict(self) -> dict[str, Any]:
        """Return the document as plain data (JSON), without what is empty."""
        found: dict[str, Any] = {"id": self.id}
        if self.title:
            found["title"] = self.title
        if isinstance(self.content, str):
            found["text"] = self.content
        else:
            found["parts"] = [part.to_dict() for part in self.content]
        if self.fields:
            found["fields"] = {k: list(v) if isinstance(v, tuple) else v for k, v in self.fields.items()}
        for name in ("parent", "source"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        return found

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Document:
        """Make a document of plain data: id, text or parts, title, fields, parent, source.

        Raises DataError for other keys, no id, or neither text nor parts.
        """
        unknown = sorted(set(content) - {"id", "text", "parts", "title", "fields", "parent", "source"})
        if unknown or "id" not in content or ("text" in content) == ("parts" in content):
            raise DataError(
                f"a document has an id, a text or parts, and perhaps a title, fields, parent, source; "
                f"found {', '.join(content) or 'nothing'}"
            )
        parts = content.get("parts")
        return cls(
            id=content["id"],
            content=content["text"] if parts is None else tuple(Part.from_dict(part) for part in parts),
            title=content.get("title") or "",
            fields=content.get("fields") or {},
            parent=content.get("parent"),
            source=content.get("source"),
        )


def check_documents(documents: Iterable[Document]) -> None:
    """Report every document that cannot be stored, all at once.

    >>> check_documents([Document("", "x"), Document("a", "x", fields={"id": 1})])
    Traceback (most recent call last):
    ...
    consilience.errors.DataError: documents: 2 problems
      - number 1 has no id
      - 'a': field 'id' has the name of a property of documents; name it otherwise

    Raises DataError for empty or repeated ids, names or values of fields that no store holds, text that is no Unicode.
    """
    problems, seen = Problems(), set[str]()
    for place, document in enumerate(documents, 1):
        if not isinstance(document.id, str) or not document.id:
            problems.add(f"number {place} has no id" if not document.id else f"id {document.id!r} is not a text")
            continue
        if document.id in seen:
            problems.add(f"{document.id!r} is given twice; ids are unique")
        seen.add(document.id)
        problems.extend(f"{document.id!r}: {found}" for found in _faults(document))
    problems.raise_if_any(DataError, "documents")


def _faults(document: Document) -> Iterable[str]:
    texts = [document.id, document.title, document.text, document.parent or "", document.source or ""]
    texts += [value for value in document.fields.values() if isinstance(value, str)]
    if not all(isinstance(text, str) for text in texts):
        yield "id, title, text, parent and source are texts"
    elif any("\x00" in text or not _encodable(text) for text in texts):
        yield "a text holds a zero character or half of a surrogate pair; remove it"
    for name, value in document.fields.items():
        if name in _OWN:
            yield f"field {name!r} has the name of a property of documents; name it otherwise"
        elif not isinstance(name, str) or not name or '"' in name or "`" in name or not name.isprintable():
            yield f"field {name!r}: a name is a printable text without quotes"
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, float) and not math.isfinite(one):
                yield f"field {name!r} is {one}; leave it out or give None"
            elif isinstance(one, int) and not -_LARGEST <= one < _LARGEST:
                yield f"field {name!r}: {one} does not fit into 64 bits; give it as a text"
            elif not (one is None and not isinstance(value, tuple)) and not isinstance(one, str | int | float | bool):
                yield f"field {name!r} is a {type(one).__name__}; use texts, numbers, truth values, lists of them"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
