"""Rows: the row's name stands in the relation named like the column to the value; foreign keys lead to other rows.

Only values that can be names make edges: texts of a few words, and lists of them. Numbers, truth values, dates,
addresses of sites and long texts do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from consilience.data.documents import Document
from consilience.data.ingestion.edges.protocol import Relation, is_row, named, normal_entity
from consilience.data.ingestion.readers.tables import REFERENCES

__all__ = ["extract"]

_WORDS = 6  # of a value that is a name
_NO_NAME = re.compile(r"^[\W\d_]*$|^\w+://|@|^\d{4}-\d\d-\d\d")


def extract(document: Document, pieces: Sequence[Document]) -> Iterator[Relation]:
    """Yield what the columns of a row say of it."""
    if not is_row(document) or not pieces:
        return
    first = pieces[0]
    head = normal_entity(document.title) or document.id
    if document.title:
        yield named(document, first)
    for column, value in document.fields.items():
        values = value if isinstance(value, tuple) else (value,)
        if column == REFERENCES:
            for text in values:
                name, arrow, target = str(text).partition(" -> ")
                if arrow:
                    yield Relation(head, name, target, first.id)
        elif column != "table":
            for one in values:
                if isinstance(one, str) and len(one.split()) <= _WORDS and not _NO_NAME.search(one.strip()):
                    yield Relation(head, column, normal_entity(one), first.id)
