"""Fixed caps on queries and documents: the same subset for everyone, drawn by hashes of ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from consilience.core.hashing import fingerprint
from consilience.data.retrieval import RetrievalData
from consilience.errors import DataError

__all__ = ["EvaluationSet", "draw_order", "evaluation_set"]


def draw_order(identifier: str) -> str:
    """Return the key by which ids are drawn: sha256("7:" + id) in hexadecimal, smallest first.

    >>> draw_order("q1")[:8]
    'c214befe'
    """
    return hashlib.sha256(f"7:{identifier}".encode()).hexdigest()


@dataclass(frozen=True)
class EvaluationSet:
    """Queries to measure on, the documents to search, and what is relevant.

    `qrels[i]` maps positions in `documents` to scores > 0 for query i; every query has at least one. Queries and
    documents are ordered by `draw_order` of their ids; equal scores keep that order.
    """

    name: str
    split: str
    query_ids: tuple[str, ...]
    queries: tuple[str, ...] = field(repr=False)
    document_ids: tuple[str, ...] = field(repr=False)
    documents: tuple[str, ...] = field(repr=False)
    qrels: tuple[dict[int, float], ...] = field(repr=False)

    @property
    def content_hash(self) -> str:
        """The identity of the drawn set, for records."""
        return fingerprint(
            [list(self.query_ids), list(self.queries), list(self.document_ids), list(self.documents), self.qrels]
        )


def evaluation_set(
    data: RetrievalData, split: str = "test", *, queries: int | None = None, documents: int | None = None
) -> EvaluationSet:
    """Draw at most `queries` queries of a split and at least their relevant documents, filled up to `documents`.

    >>> data = RetrievalData.of(
    ...     "tiny",
    ...     documents={"d1": "sorted(x)", "d2": "open(path)", "d3": "len(x)"},
    ...     queries={"q1": ("sort", "test"), "q2": ("open", "test")},
    ...     judgements=[("q1", "d1", 1), ("q2", "d2", 1)],
    ... )
    >>> drawn = evaluation_set(data, queries=1, documents=2)
    >>> len(drawn.queries), len(drawn.documents), [len(relevant) for relevant in drawn.qrels]
    (1, 2, [1])

    None means all. Queries without a relevant document are left out. Every document judged relevant for a kept
    query is kept, even when there are more than `documents`. Raises DataError when no query is left.
    """
    for cap, what in ((queries, "queries"), (documents, "documents")):
        if cap is not None and cap < 1:
            raise DataError(f"dataset {data.name}: at most {cap} {what} were asked for; use 1 or more, or none for all")
    asked, judged = data.queries(split), data.qrels(split)
    relevant = {
        query: {document: score for document, score in scores.items() if score > 0} for query, scores in judged.items()
    }
    text_of = dict(zip(asked.ids, asked.texts, strict=True))
    kept = sorted((key for key in asked.ids if relevant.get(key)), key=draw_order)[:queries]
    if not kept:
        raise DataError(f"dataset {data.name}: none of the {len(asked)} queries of {split!r} has a relevant document")
    corpus = data.documents
    chosen = {document for query in kept for document in relevant[query]}
    order = sorted(corpus.ids, key=draw_order)
    room = len(corpus) if documents is None else max(documents - len(chosen), 0)
    chosen.update([key for key in order if key not in chosen][:room])
    ids = tuple(key for key in order if key in chosen)
    position = {key: index for index, key in enumerate(ids)}
    return EvaluationSet(
        data.name,
        split,
        tuple(kept),
        tuple(text_of[key] for key in kept),
        ids,
        tuple(corpus.texts[corpus.position[key]] for key in ids),
        tuple({position[document]: score for document, score in relevant[query].items()} for query in kept),
    )
