"""Training pairs: the only door from a dataset to a learner that fits weights, and where leakage is stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from consilience.core.hashing import fingerprint
from consilience.data.reserved import ReservedQueries
from consilience.data.text import query_key
from consilience.errors import DataError, LeakageError

if TYPE_CHECKING:
    from consilience.data.retrieval import Documents, RetrievalData

__all__ = ["TrainingPairs", "training_pairs"]


@dataclass(frozen=True)
class TrainingPairs:
    """Distinct training queries, each with every document judged relevant for it.

    `positives[i]` are positions in `documents` with score > 0, best first; `negatives[i]` those judged 0. `dropped`
    counts queries left out by reason; `sources` are the content hashes of what was checked against.
    """

    name: str
    queries: tuple[str, ...]
    positives: tuple[tuple[int, ...], ...]
    negatives: tuple[tuple[int, ...], ...]
    documents: Documents = field(repr=False)
    dropped: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.queries)

    def pairs(self) -> list[tuple[str, str]]:
        """Return (query text, document text) for every relevant document."""
        texts = self.documents.texts
        return [
            (query, texts[index])
            for query, relevant in zip(self.queries, self.positives, strict=True)
            for index in relevant
        ]

    @property
    def content_hash(self) -> str:
        """The identity of the pairs, for records."""
        return fingerprint([list(self.queries), self.positives, self.sources])

    def describe(self) -> dict[str, object]:
        """Return the facts for a record: name, counts, what was dropped and checked, the hash."""
        return {
            "name": self.name,
            "queries": len(self.queries),
            "pairs": sum(map(len, self.positives)),
            "dropped": dict(self.dropped),
            "checked_against": dict(self.sources),
            "content_hash": self.content_hash,
        }


def training_pairs(
    data: RetrievalData,
    *,
    split: str = "train",
    against: Iterable[RetrievalData] = (),
    reserved: ReservedQueries | None = None,
    on_leak: Literal["drop", "refuse"] = "drop",
) -> TrainingPairs:
    """Return the training queries of `data` with their relevant documents, without any leaked query.

    >>> from consilience.data import ReservedQueries, RetrievalData
    >>> data = RetrievalData.of(
    ...     "tiny",
    ...     documents={"d1": "sorted(x)", "d2": "open(path)"},
    ...     queries={"a": ("sort a list", "train"), "b": ("Open a file.", "train"), "c": ("open a file", "test")},
    ...     judgements=[("a", "d1", 1), ("b", "d2", 1), ("c", "d2", 1)],
    ... )
    >>> pairs = training_pairs(data, reserved=ReservedQueries.empty())
    >>> pairs.pairs(), pairs.dropped["same as a dev or test query"]
    ([('sort a list', 'sorted(x)')], 1)

    Two training queries with the same text become one query with the relevant documents of both.
    Raises LeakageError for another split than train and, with `on_leak="refuse"`, for leaked queries;
    DataError when nothing is left.
    """
    if split != "train":
        raise LeakageError(
            f"dataset {data.name}: training pairs of the split {split!r} were asked for; only 'train' may be fitted on"
        )
    reserved = ReservedQueries.find() if reserved is None else reserved
    others = {id(other): other for other in (data, *against)}.values()
    held_out = {
        query_key(text): other.name
        for other in others
        for kind in ("dev", "test")
        if kind in other.splits
        for text in other.queries(kind).texts
    }
    dropped = {"same as a dev or test query": 0, "reserved": 0, "no relevant document": 0, "repeated": 0}
    leaked: list[str] = []
    merged: dict[str, tuple[str, dict[str, float]]] = {}
    queries, qrels = data.queries("train"), data.qrels("train")
    for key, text in zip(queries.ids, queries.texts, strict=True):
        judged = qrels.get(key, {})
        same = query_key(text)
        if same in held_out:
            dropped["same as a dev or test query"] += 1
            leaked.append(f"{text!r} (held out in {held_out[same]})")
        elif text in reserved:
            dropped["reserved"] += 1
            leaked.append(f"{text!r} (reserved)")
        elif not any(score > 0 for score in judged.values()):
            dropped["no relevant document"] += 1
        elif same in merged:
            dropped["repeated"] += 1
            known = merged[same][1]
            known.update({document: max(score, known.get(document, 0.0)) for document, score in judged.items()})
        else:
            merged[same] = (text, dict(judged))
    if leaked and on_leak == "refuse":
        shown = "".join(f"\n  - {entry}" for entry in leaked[:5])
        raise LeakageError(
            f"dataset {data.name}: {len(leaked)} training queries are held out or reserved, for example{shown}"
        )
    if not merged:
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise DataError(f"dataset {data.name}: none of its {len(queries)} training queries is left ({counts})")
    position = data.documents.position
    entries = [
        (text, sorted(judged.items(), key=lambda item: (-item[1], position[item[0]])))
        for text, judged in merged.values()
    ]
    sources = {other.name: other.content_hash for other in others}
    if len(reserved):
        sources["reserved queries"] = reserved.content_hash
    return TrainingPairs(
        data.name,
        tuple(text for text, _ in entries),
        tuple(tuple(position[key] for key, score in judged if score > 0) for _, judged in entries),
        tuple(tuple(position[key] for key, score in judged if score <= 0) for _, judged in entries),
        data.documents,
        dropped,
        sources,
    )
