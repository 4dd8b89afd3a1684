"""Searches that need more than the nearest: several subtopics, copies, a second document behind a reference."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.core.randomness import draw_some, stream_key
from consilience.errors import DataError
from consilience.retrieval.selection import select

__all__ = [
    "FollowUp",
    "LabelledCorpus",
    "SubtopicQuery",
    "alpha_ndcg",
    "draw_documents",
    "follow_ups",
    "labelled_corpus",
    "measure_selection",
    "near_copies",
    "subtopic_queries",
    "subtopic_recall",
]

_SECTION = re.compile(r"\b\d+[A-Z]?-\d[\d.]*\d[a-z]?\b")
_WORD = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True)
class LabelledCorpus:
    """Documents with a label each, and queries with the documents that answer them, by split."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    queries: Mapping[str, tuple[tuple[str, str], ...]]
    """Split -> text of the query, id of a relevant document."""


@dataclass(frozen=True)
class SubtopicQuery:
    """A query about several labels at once."""

    text: str
    subtopics: tuple[str, ...]


@dataclass(frozen=True)
class FollowUp:
    """A question whose answer is in `first`, and in `second`, which `first` refers to and no word of the query is in.

    first, second: rows of documents.
    """

    text: str
    first: int
    second: int


def labelled_corpus(folder: str | Path, column: str) -> LabelledCorpus:
    """Read a dataset in the layout of `RetrievalData` whose corpus has a column of labels. Raises DataError."""
    import pyarrow.parquet as parquet

    place = Path(folder)
    try:
        corpus = parquet.read_table(place / "corpus.parquet").to_pylist()
        asked = {row["_id"]: row for row in parquet.read_table(place / "queries.parquet").to_pylist()}
        judged = parquet.read_table(place / "qrels.parquet").to_pylist()
    except FileNotFoundError as error:
        raise DataError(f"{place}: no dataset here ({error})") from error
    if not corpus or column not in corpus[0]:
        raise DataError(f"{place}: its documents have no column {column!r}; there are {', '.join(corpus[0])}")
    queries: dict[str, list[tuple[str, str]]] = {}
    for row in judged:
        if row["score"] > 0:
            query = asked[row["query_id"]]
            queries.setdefault(query["split"], []).append((query["text"], row["corpus_id"]))
    texts = tuple(" ".join(part for part in (row["title"], row["text"]) if part) for row in corpus)
    labels = tuple(str(row[column]) for row in corpus)
    found = {split: tuple(own) for split, own in queries.items()}
    return LabelledCorpus(tuple(row["_id"] for row in corpus), texts, labels, found)


def subtopic_queries(
    corpus: LabelledCorpus, split: str, count: int, *, least: int = 3, most: int = 5, seed: int = 0
) -> list[SubtopicQuery]:
    """Return queries that mix those of `least` to `most` labels, one of each.

    >>> queries = {"test": (("red", "a"), ("tax", "b"), ("port", "c"))}
    >>> corpus = LabelledCorpus(("a", "b", "c"), ("red cat", "tax law", "port"), ("art", "law", "net"), queries)
    >>> sorted(subtopic_queries(corpus, "test", 1)[0].subtopics)
    ['art', 'law', 'net']
    """
    label_of = dict(zip(corpus.ids, corpus.labels, strict=True))
    by_label: dict[str, list[str]] = {}
    for text, document in corpus.queries[split]:
        if document in label_of:
            by_label.setdefault(label_of[document], []).append(text)
    names = sorted(by_label)
    if len(names) < least:
        raise DataError(f"queries of {split!r} have {len(names)} labels; {least} are needed")
    made = []
    for number in range(count):
        random = np.random.Generator(np.random.Philox(stream_key(seed, "subtopics", split, str(number))))
        chosen = random.permutation(len(names))[: int(random.integers(least, min(most, len(names)) + 1))]
        parts = [by_label[names[place]][int(random.integers(len(by_label[names[place]])))] for place in chosen]
        made.append(SubtopicQuery("; ".join(parts), tuple(names[place] for place in chosen)))
    return made


def draw_documents(corpus: LabelledCorpus, count: int, *, seed: int = 0) -> LabelledCorpus:
    """Return the corpus with at most `count` of its documents, drawn by `seed`; queries stay."""
    rows = draw_some(range(len(corpus.ids)), count, seed, "documents")
    ids, texts, labels = (tuple(column[row] for row in rows) for column in (corpus.ids, corpus.texts, corpus.labels))
    return LabelledCorpus(ids, texts, labels, corpus.queries)


def measure_selection(
    labels: Sequence[str],
    vectors: NDArray[np.float32],
    queries: Sequence[SubtopicQuery],
    asked: NDArray[np.float32],
    *,
    k: int = 10,
    **settings: Any,
) -> dict[str, NDArray[np.float64]]:
    """Return alpha-nDCG, subtopic recall and precision of what `select` with `settings` chooses, a value per query.

    >>> vectors = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], np.float32)
    >>> query = SubtopicQuery("both", ("a", "b"))
    >>> found = measure_selection("aab", vectors, [query], np.array([[1.0, 0.9]], np.float32), k=2, method="mmr")
    >>> found["subtopic recall"].tolist()
    [1.0]

    labels: one of every row of vectors.
    """
    there = Counter(labels)
    rows: dict[str, list[float]] = {"alpha-nDCG": [], "subtopic recall": [], "precision": []}
    for query, vector in zip(queries, asked, strict=True):
        found = [labels[row] for row in select(vectors, query=vector, k=k, **settings).indices]
        rows["alpha-nDCG"].append(alpha_ndcg(found, query.subtopics, there, k=k))
        rows["subtopic recall"].append(subtopic_recall(found, query.subtopics, k=k))
        rows["precision"].append(sum(label in query.subtopics for label in found) / k)
    return {name: np.array(values) for name, values in rows.items()}


def subtopic_recall(found: Sequence[str], wanted: Sequence[str], *, k: int = 10) -> float:
    """Return the share of the wanted labels that the first k hits have.

    >>> subtopic_recall(["a", "a", "b"], ["a", "b", "c", "d"])
    0.5
    """
    return len(set(found[:k]) & set(wanted)) / len(set(wanted))


def alpha_ndcg(
    found: Sequence[str], wanted: Sequence[str], there: Mapping[str, int], *, k: int = 10, alpha: float = 0.5
) -> float:
    """Return alpha-nDCG of hits with one label each: a label counts (1 - alpha) ** (times it was there before).

    >>> round(alpha_ndcg(["a", "a", "b"], ["a", "b"], {"a": 2, "b": 1}, k=3), 4)
    0.9652

    there: how many documents of every label there are, for the best possible order. Source: Clarke et al. 2008.
    """
    ideal: list[str] = []
    left = {label: there.get(label, 0) for label in set(wanted)}
    seen: Counter[str] = Counter()
    for _ in range(k):
        free = [label for label in sorted(left) if left[label]]
        if not free:
            break
        best = min(free, key=lambda label: seen[label])
        ideal.append(best)
        seen[best] += 1
        left[best] -= 1
    best_gain = _gain(ideal, wanted, k, alpha)
    return _gain(found, wanted, k, alpha) / best_gain if best_gain else 0.0


def _gain(found: Sequence[str], wanted: Sequence[str], k: int, alpha: float) -> float:
    seen: Counter[str] = Counter()
    total = 0.0
    for rank, label in enumerate(found[:k]):
        if label in wanted:
            total += (1 - alpha) ** seen[label] / np.log2(rank + 2)
            seen[label] += 1
    return float(total)


def near_copies(texts: Sequence[str], copies: int, *, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return every text `copies` times with a small edit each, and the row that each was made of.

    >>> near_copies(["one two three four"], 2)[1]
    [0, 0]

    An edit leaves out a word, exchanges two neighbours, or says a word twice, at most one for every ten words.
    """
    made, origins = [], []
    for row, text in enumerate(texts):
        for number in range(copies):
            random = np.random.Generator(np.random.Philox(stream_key(seed, "copies", str(row), str(number))))
            words = text.split()
            for _ in range(max(1, len(words) // 10)):
                place = int(random.integers(max(len(words) - 1, 1)))
                kind = int(random.integers(3))
                if kind == 0 and len(words) > 3:
                    words.pop(place)
                elif kind == 1 and len(words) > 1:
                    words[place], words[place + 1] = words[place + 1], words[place]
                else:
                    words.insert(place, words[place] if words else "the")
            made.append(" ".join(words))
            origins.append(row)
    return made, origins


def follow_ups(corpus: LabelledCorpus, split: str) -> tuple[list[FollowUp], list[tuple[int, int]]]:
    """Return questions with a second hop, and all references between documents, of statutes labelled by section.

    >>> queries = {"test": (("fees of the court", "a"),)}
    >>> texts = ("Fees of the court: see § 1-20.", "Payment is due in March.")
    >>> corpus = LabelledCorpus(("a", "b"), texts, ("1-10", "1-20"), queries)
    >>> follow_ups(corpus, "test")[0]
    [FollowUp(text='fees of the court', first=0, second=1)]

    A query counts once, with the first reference whose document has no word (of four letters or more, by their first
    five) of the query.
    """
    row_of = {name: row for row, name in enumerate(corpus.ids)}
    section_of = {label: row for row, label in enumerate(corpus.labels)}
    referred = [
        [section_of[name] for name in dict.fromkeys(_SECTION.findall(text)) if section_of.get(name, row) != row]
        for row, text in enumerate(corpus.texts)
    ]
    found = []
    for text in dict.fromkeys(text for text, _ in corpus.queries[split]):
        rows = [row_of[name] for own, name in corpus.queries[split] if own == text and name in row_of]
        words = _stems(text)
        hops = [(a, b) for a in rows for b in referred[a] if b not in rows and not words & _stems(corpus.texts[b])]
        if hops and words:
            found.append(FollowUp(text, *hops[0]))
    return found, [(row, other) for row, others in enumerate(referred) for other in others]


def _stems(text: str) -> set[str]:
    return {word[:5] for word in _WORD.findall(text.lower())}
