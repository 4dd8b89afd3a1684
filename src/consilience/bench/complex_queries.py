"""Queries of several parts over collections with metadata, by a seeded generator: labels come from the metadata alone.

Four kinds, after the tasks of CRUMB 2025: set operations over what a digest of posts is about; two aspects that both
have to be there; a document remembered by vague facts; a topic with a constraint on the section.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from consilience.bench.subtopics import LabelledCorpus, labelled_corpus
from consilience.core.randomness import stream_key
from consilience.data.documents import Document
from consilience.data.retrieval import RetrievalData

__all__ = ["KINDS", "ComplexSet", "complex_sets"]

KINDS = ("set operations", "two aspects", "vague facts", "constraint")
NAMES = {
    "comp.graphics": "computer graphics and image files",
    "comp.os.ms-windows.misc": "Microsoft Windows",
    "comp.sys.ibm.pc.hardware": "PC hardware",
    "comp.sys.mac.hardware": "Macintosh computers",
    "comp.windows.x": "the X Window System",
    "misc.forsale": "things for sale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "ice hockey",
    "sci.crypt": "encryption",
    "sci.electronics": "electronic circuits",
    "sci.med": "medicine and illness",
    "sci.space": "space flight",
}
_WORDS = 70  # of a post in a digest
_FACT = 7  # words of a fact


@dataclass(frozen=True)
class ComplexSet:
    """Documents with their passages, and queries by split with graded labels.

    documents: whole texts. passages: pieces with ids DOCUMENT:NUMBER. queries: split -> id -> text; qrels: split ->
    id -> document -> grade.
    """

    kind: str
    documents: tuple[Document, ...] = field(repr=False)
    passages: tuple[Document, ...] = field(repr=False)
    queries: Mapping[str, Mapping[str, str]] = field(repr=False)
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]] = field(repr=False)


def complex_sets(
    root: str | Path, *, queries: Mapping[str, int], documents: int = 1000, seed: int = 0
) -> list[ComplexSet]:
    """Return the four kinds. root: the folder of the retrieval datasets; queries: split (any name) -> how many.

    Every query has a document with a grade above 0; the sets are functions of the data and `seed`. Raises DataError
    where a dataset is not there.
    """
    place = Path(root)
    posts = labelled_corpus(place / "community_newsgroups", "group")
    digests, about = _digests(posts, documents, seed)
    whole, pieces = _documents(digests, "digest")
    made = []
    for kind, draw in ((KINDS[0], _set_operation), (KINDS[1], _two_aspects)):
        asked, labels = _drawn(kind, draw, about, queries, seed)
        made.append(ComplexSet(kind, whole, pieces, asked, labels))
    made.append(_vague(RetrievalData.open(place / "cisi"), queries, documents, seed))
    made.append(_constrained(labelled_corpus(place / "software_debian", "section"), queries, documents, seed))
    return made


def _random(seed: int, *names: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(stream_key(seed, "complex", *names)))


def _digests(posts: LabelledCorpus, count: int, seed: int) -> tuple[list[list[str]], list[frozenset[str]]]:
    """Return digests of one to three posts of different groups, and what each is about."""
    random = _random(seed, "digests")
    by_group: dict[str, list[str]] = {}
    for text, group in zip(posts.texts, posts.labels, strict=True):
        by_group.setdefault(group, []).append(" ".join(text.split()[:_WORDS]))
    groups = sorted(by_group)
    digests, about = [], []
    for _ in range(count):
        chosen = random.permutation(len(groups))[: int(random.integers(1, 4))]
        parts = [by_group[groups[place]][int(random.integers(len(by_group[groups[place]])))] for place in chosen]
        digests.append(parts)
        about.append(frozenset(groups[place] for place in chosen))
    return digests, about


def _documents(parts: Sequence[Sequence[str]], name: str) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    whole = tuple(Document(f"{name}{row}", "\n\n".join(own)) for row, own in enumerate(parts))
    pieces = tuple(
        Document(f"{name}{row}:{place}", text, parent=f"{name}{row}")
        for row, own in enumerate(parts)
        for place, text in enumerate(own)
    )
    return whole, pieces


def _set_operation(random: np.random.Generator, about: Sequence[frozenset[str]]) -> tuple[str, dict[int, int]]:
    groups = sorted(NAMES)
    a, b, c = (groups[place] for place in random.permutation(len(groups))[:3])
    form = int(random.integers(3))
    if form == 0:
        text = f"{NAMES[a]} AND {NAMES[b]} but NOT {NAMES[c]}"
        rows = [row for row, own in enumerate(about) if {a, b} <= own and c not in own]
    elif form == 1:
        text = f"{NAMES[a]} OR {NAMES[b]}, but NOT {NAMES[c]}"
        rows = [row for row, own in enumerate(about) if {a, b} & own and c not in own]
    else:
        text = f"{NAMES[a]} AND {NAMES[b]} AND {NAMES[c]}"
        rows = [row for row, own in enumerate(about) if {a, b, c} <= own]
    return text, dict.fromkeys(rows, 1)


def _two_aspects(random: np.random.Generator, about: Sequence[frozenset[str]]) -> tuple[str, dict[int, int]]:
    groups = sorted(NAMES)
    a, b = (groups[place] for place in random.permutation(len(groups))[:2])
    labels = {row: 2 if len(own) == 2 else 1 for row, own in enumerate(about) if {a, b} <= own}
    return f"{NAMES[a]}; {NAMES[b]}", labels


def _drawn(
    kind: str, draw: object, about: Sequence[frozenset[str]], queries: Mapping[str, int], seed: int
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, dict[str, int]]]]:
    """Return queries that have an answer, no text twice, split after split."""
    assert callable(draw)
    random, known = _random(seed, kind), set()
    asked: dict[str, dict[str, str]] = {}
    labels: dict[str, dict[str, dict[str, int]]] = {}
    for split, count in queries.items():
        asked[split], labels[split] = {}, {}
        for _ in range(100 * count):
            text, rows = draw(random, about)
            if len(asked[split]) < count and rows and text not in known:
                known.add(text)
                name = f"{split}-{len(asked[split])}"
                asked[split][name] = text
                labels[split][name] = {f"digest{row}": grade for row, grade in rows.items()}
    return asked, labels


def _vague(data: RetrievalData, queries: Mapping[str, int], documents: int, seed: int) -> ComplexSet:
    """Three runs of words of a document, without those of its title."""
    random = _random(seed, KINDS[2])
    texts = [(name, text) for name, text in zip(data.documents.ids, data.documents.texts, strict=True)][:documents]
    cut = {name: re.split(r"(?<=[.!?])\s+", text) for name, text in texts}
    titles = {name: set(text.lower().split()[:12]) for name, text in texts}
    pool = [name for name, text in texts if len(text.split()) > 60]
    order = random.permutation(len(pool)).tolist()
    asked: dict[str, dict[str, str]] = {}
    labels: dict[str, dict[str, dict[str, int]]] = {}
    for split, count in queries.items():
        asked[split], labels[split] = {}, {}
        for place in [order.pop() for _ in range(min(count, len(order)))]:
            name, facts = pool[place], []
            words = [word for word in " ".join(cut[name]).split()[12:] if word.lower() not in titles[name]]
            for _ in range(3):
                start = int(random.integers(max(len(words) - _FACT, 1)))
                facts.append(" ".join(words[start : start + _FACT]))
            key = f"{split}-{len(asked[split])}"
            asked[split][key] = "It said something like " + ", and ".join(facts)
            labels[split][key] = {name: 1}
    whole = tuple(Document(name, text) for name, text in texts)
    pieces = tuple(
        Document(f"{name}:{place}", " ".join(sentences[start : start + 4]), parent=name)
        for name, sentences in cut.items()
        for place, start in enumerate(range(0, len(sentences), 4))
    )
    return ComplexSet(KINDS[2], whole, pieces, asked, labels)


def _constrained(corpus: LabelledCorpus, queries: Mapping[str, int], documents: int, seed: int) -> ComplexSet:
    """A short description, and the section that the document has to be of."""
    random = _random(seed, KINDS[3])
    row_of = {name: row for row, name in enumerate(corpus.ids)}
    pairs = [(text, name) for text, name in corpus.queries["test"] if name in row_of]
    order = random.permutation(len(pairs)).tolist()
    asked: dict[str, dict[str, str]] = {}
    labels: dict[str, dict[str, dict[str, int]]] = {}
    needed: dict[str, None] = {}
    for split, count in queries.items():
        asked[split], labels[split] = {}, {}
        for place in [order.pop() for _ in range(min(count, len(order)))]:
            text, name = pairs[place]
            key = f"{split}-{len(asked[split])}"
            asked[split][key] = f"{text}, in the section {corpus.labels[row_of[name]]}"
            labels[split][key] = {name: 1}
            needed[name] = None
    rest = [corpus.ids[row] for row in random.permutation(len(corpus.ids)).tolist()]
    kept = list(dict.fromkeys([*needed, *rest]))[: max(documents, len(needed))]
    texts = {name: f"Section {corpus.labels[row_of[name]]}. {corpus.texts[row_of[name]]}" for name in kept}
    whole = tuple(Document(name, text) for name, text in texts.items())
    pieces = tuple(
        Document(f"{name}:{place}", text, parent=name)
        for name, own in texts.items()
        for place, text in enumerate(own.split("\n\n"))
        if text.strip()
    )
    return ComplexSet(KINDS[3], whole, pieces, asked, labels)
