"""What documents say of entities and of each other, as edges; one file per extractor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Literal

from consilience.data.documents import Document
from consilience.data.ingestion.edges.protocol import Relation, normal_entity
from consilience.errors import Problems, RequestError, did_you_mean

__all__ = ["EXTRACTORS", "Extractor", "Relation", "check_extractors", "normal_entity", "relations"]

Extractor = Literal["links", "tables", "rules"]
EXTRACTORS: tuple[Extractor, ...] = ("links", "tables", "rules")


def check_extractors(names: Iterable[str]) -> None:
    """Raise RequestError naming extractors that are not there."""
    problems = Problems()
    problems.extend(
        f"no extractor {name!r}{did_you_mean(name, EXTRACTORS)}" for name in names if name not in EXTRACTORS
    )
    problems.raise_if_any(RequestError, "edges")


def relations(document: Document, pieces: Sequence[Document], extractors: Iterable[str]) -> Iterator[Relation]:
    """Yield the relations of a document by extractors, each once for every piece that says it.

    >>> text = "See [ports](ports.md). Ada Lovelace was born in London."
    >>> page = Document("people.md", text, title="People", fields={"format": "markdown"}, source="people.md")
    >>> for one in relations(page, [page], ["links", "rules"]):
    ...     print(one.head, one.name, one.tail, sep=" | ")
    people | title of | people.md
    people | links to | ports.md
    ada lovelace | born in | london

    They follow from the document alone: the same document always has the same. pieces: the document as it is stored,
    whole or cut; a relation names the piece that says it. Raises RequestError for unknown extractors.
    """
    names = tuple(extractors)
    check_extractors(names)
    seen: set[Relation] = set()
    for name in names:
        for one in import_module(f"consilience.data.ingestion.edges.{name}").extract(document, pieces):
            if one.head and one.tail and one.head != one.tail and one not in seen:
                seen.add(one)
                yield one
