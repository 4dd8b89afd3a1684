"""What an extractor of edges yields, and how the names of entities are written."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from consilience.data.documents import Document

__all__ = ["Relation", "is_row", "named", "normal_entity"]

_EDGES = re.compile(r"^[^\w#+]+|[^\w#+]+$")


@dataclass(frozen=True)
class Relation:
    """`head` stands in a relation to `tail`, says the piece of a document with the id `document`."""

    head: str
    name: str
    tail: str
    document: str
    weight: float = 1.0


def normal_entity(text: str) -> str:
    """Return the name of an entity as edges have it: composed, case folded, with single spaces, without marks around.

    >>> normal_entity("  The  Hague,"), normal_entity("STRASSE") == normal_entity("straße")
    ('the hague', True)
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold()).casefold()
    plain = " ".join(unicodedata.normalize("NFKC", folded).split())
    return " ".join(_EDGES.sub("", plain).split())


def is_row(document: Document) -> bool:
    """Return whether a document is a row of a file, by its id."""
    return document.source is not None and document.id.startswith(f"{document.source}#")


def named(document: Document, piece: Document) -> Relation:
    """Return the relation that leads from a document's title to its id, by which others refer to it."""
    return Relation(normal_entity(document.title), "title of", document.id, piece.id)
