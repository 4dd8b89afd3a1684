"""Questions for every kind of store over one collection of films, statutes, words and news, by a seeded generator.

Five classes: phrases that are quoted, meaning (a text in other words), relations over two steps, rows that pass
filters, and rows with a phrase. Some templates are held out, to see what a router makes of wordings it does not know.
What is right follows from how a question was made.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.bench.subtopics import labelled_corpus
from consilience.core.randomness import stream_key
from consilience.data.documents import Document
from consilience.data.ingestion.edges.protocol import normal_entity
from consilience.errors import DataError
from consilience.stores.table import Edge
from consilience.stores.vectors import Found

__all__ = [
    "CLASSES",
    "FILMS",
    "Collection",
    "Question",
    "StalledStore",
    "mixed_collection",
    "mixed_questions",
    "random_vectors",
    "recall_at",
]

CLASSES = ("phrase", "meaning", "relation", "rows", "mixed")
FILMS = "movies.parquet"

_KNOWN: Mapping[str, tuple[str, ...]] = {
    "phrase": ('Which text says "{phrase}"?', 'find the words "{phrase}"', 'where does it read "{phrase}"'),
    "meaning": ("{query}", "what is said about {query}", "texts on {query}"),
    "relation": (
        "What is {word} a kind of, and what is that a kind of?",
        "the kind of thing {word} is, and its kind",
        "what type of thing is {word}, two steps up",
    ),
    "rows": (
        "Which {genre} films came out in {year} with {actor}?",
        "list films with {actor} from {year}",
        "{genre} movies featuring {actor} in {year}",
    ),
    "mixed": (
        'films from {year} that say "{phrase}"',
        'which film of {year} mentions "{phrase}"?',
        'movies of {year} with the words "{phrase}"',
    ),
}
_HELD_OUT: Mapping[str, tuple[str, ...]] = {
    "phrase": ('I remember "{phrase}". Where is that?', 'who wrote "{phrase}"'),
    "meaning": ("please help me with {query}", "{query}: where can I read more?"),
    "relation": ("name the kinds of things that {word} belongs to", "{word} is an example of what, and that of what?"),
    "rows": ("was {actor} in a film during {year}?", "show me what {actor} played in, year {year}, {genre}"),
    "mixed": ('"{phrase}" is from which movie of {year}?', 'the {year} film where they write "{phrase}"'),
}
_PHRASE, _SHORT = 6, 4  # words

Made = Iterator[tuple[dict[str, Any], tuple[str, ...]]]
"""What goes into a template, and the ids of what is right."""


@dataclass(frozen=True)
class Question:
    """A question of a class, the ids of what answers it, and whether its template is held out."""

    kind: str
    text: str
    gold: tuple[str, ...]
    held_out: bool


@dataclass(frozen=True)
class Collection:
    """Documents and edges, and what questions are made of: pairs of query and document, chains of words."""

    documents: tuple[Document, ...]
    edges: tuple[Edge, ...]
    asked: tuple[tuple[str, str], ...]
    chains: tuple[tuple[str, str, str], ...]


def mixed_collection(root: str | Path, *, size: int = 4000, seed: int = 0) -> Collection:
    """Return films, statutes, words and news, a quarter of `size` each. root: the folder of the public data.

    Raises DataError where a part of it is not there.
    """
    import pyarrow.parquet as parquet

    place, each = Path(root), max(size // 4, 1)
    try:
        films = parquet.read_table(place / "tasks" / "movies_store" / FILMS).to_pylist()
    except FileNotFoundError as error:
        raise DataError(f"{place}: no films here ({error})") from error
    rows = [_film(films[place]) for place in _order(seed, "films", len(films))[:each]]
    law = labelled_corpus(place / "retrieval" / "law_dccode", "section")
    news = labelled_corpus(place / "retrieval" / "news_agnews", "topic")
    asked: list[tuple[str, str]] = []
    texts: list[Document] = []
    for name, corpus in (("law", law), ("news", news)):
        text_of = dict(zip(corpus.ids, corpus.texts, strict=True))
        pairs = [pair for pair in corpus.queries["test"] if pair[1] in text_of and len(pair[0].split()) > 2]
        pairs = [pairs[row] for row in _order(seed, name, len(pairs))]
        kept = list(dict.fromkeys([document for _, document in pairs[: each // 2]] + list(corpus.ids)))[:each]
        texts += [Document(key, text_of[key], source=f"{name}.txt") for key in kept]
        held = set(kept)
        asked += [pair for pair in pairs if pair[1] in held]
    words, edges, chains = _words(place / "retrieval" / "lexical_wordnet", each, seed)
    return Collection((*rows, *texts, *words), tuple(edges), tuple(asked), tuple(chains))


def mixed_questions(collection: Collection, count: int, *, seed: int = 0) -> list[Question]:
    """Return `count` questions of every class, by turns of all templates, two fifths of them held out."""
    makers = _makers(collection, seed)
    found: list[Question] = []
    for kind in CLASSES:
        templates = [(text, False) for text in _KNOWN[kind]] + [(text, True) for text in _HELD_OUT[kind]]
        made = makers[kind]()
        for number in range(count):
            values, gold = next(made)
            text, held_out = templates[number % len(templates)]
            found.append(Question(kind, text.format(**values), gold, held_out))
    return found


def recall_at(found: Sequence[str], gold: Sequence[str], *, k: int = 10) -> float:
    """Return the share of what is right among the first k hits; with more right ones than k, of k.

    >>> recall_at(["a", "b", "c"], ["c", "x"], k=3)
    0.5
    """
    return len(set(found[:k]) & set(gold)) / min(len(set(gold)), k)


class StalledStore:
    """A store that does not answer in time: what a Searcher does when one hangs. seconds: how long it takes.

    >>> StalledStore(0).search(["a"], 1)[0].numbers.tolist()
    []
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def search(self, queries: Sequence[str], k: int, *, where: Any = None) -> list[Found]:
        """Wait, and find nothing."""
        time.sleep(self.seconds)
        return [Found(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]


def _order(seed: int, name: str, count: int) -> list[int]:
    order: list[int] = _random(seed, name).permutation(count).tolist()
    return order


def _random(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(stream_key(seed, "mixed", name)))


def _film(row: Mapping[str, Any]) -> Document:
    fields = {"year": row["year"], "genres": tuple(json.loads(row["genres"])), "cast": tuple(json.loads(row["cast"]))}
    return Document(f"{FILMS}#{row['_id']}", row["text"], title=row["title"], fields=fields, source=FILMS)


def _words(folder: Path, size: int, seed: int) -> tuple[list[Document], list[Edge], list[tuple[str, str, str]]]:
    """Return entries of words, "kind of" edges, and chains: a word, its entry, the entry of what it is a kind of."""
    corpus = labelled_corpus(folder, "lexname")
    entry: dict[str, tuple[str, str, list[str]]] = {}
    for key, text in zip(corpus.ids, corpus.texts, strict=True):
        found = re.match(r"([^.]+)\. A kind of ([^.]+)\.", text)
        if found:
            names = [normal_entity(name) for name in found[1].split(",")]
            for name in names:
                entry.setdefault(name, (key, text, [normal_entity(one) for one in found[2].split(",")]))
    chains = [(name, key, entry[above[0]][0]) for name, (key, _, above) in entry.items() if above[0] in entry]
    chains = [chain for chain in chains if chain[1] != chain[2] and len(chain[0]) > 3]
    chains = [chains[row] for row in _order(seed, "words", len(chains))]
    wanted = list(dict.fromkeys(key for chain in chains for key in chain[1:]))[:size]
    kept = set(wanted)
    texts = dict(zip(corpus.ids, corpus.texts, strict=True))
    documents = [Document(key, texts[key], source="words.txt") for key in wanted]
    edges = [
        Edge(name, "kind of", above, key) for name, (key, _, tails) in entry.items() if key in kept for above in tails
    ]
    return documents, edges, [chain for chain in chains if set(chain[1:]) <= kept]


def _makers(collection: Collection, seed: int) -> dict[str, Callable[[], Made]]:
    films = [document for document in collection.documents if document.source == FILMS]
    others = [one for one in collection.documents if one.source in ("law.txt", "news.txt")]

    def phrases(documents: Sequence[Document], words: int, name: str) -> Made:
        random = _random(seed, name)
        for row in random.permutation(len(documents)).tolist():
            text = re.findall(r"[\w'’-]+(?:,)?", documents[row].text)
            if len(text) < 2 * words:
                continue
            start = int(random.integers(len(text) - words))
            phrase = " ".join(text[start : start + words]).strip(",")
            if phrase in documents[row].text:
                gold = tuple(one.id for one in collection.documents if phrase in one.text)
                yield {"phrase": phrase, "year": documents[row].fields.get("year", "")}, gold

    def meaning() -> Made:
        for row in _order(seed, "meaning", len(collection.asked)):
            query, document = collection.asked[row]
            yield {"query": query}, (document,)

    def relation() -> Made:
        for row in _order(seed, "relation", len(collection.chains)):
            word, first, second = collection.chains[row]
            yield {"word": word}, (first, second)

    def rows() -> Made:
        for row in _order(seed, "rows", len(films)):
            fields: Mapping[str, Any] = films[row].fields
            if not fields.get("cast") or not fields.get("genres") or len(fields["cast"][0].split()) < 2:
                continue
            genre, actor, year = fields["genres"][0], fields["cast"][0], fields["year"]
            gold = [one.id for one in films if _has(one, "cast", actor) and one.fields["year"] == year]
            yield {"genre": genre, "actor": actor, "year": year}, tuple(gold)

    def mixed() -> Made:
        for values, gold in phrases(films, _SHORT, "mixed"):
            years = {one.id: one.fields.get("year") for one in films}
            right = tuple(name for name in gold if years.get(name) == values["year"])
            yield values, right

    return {
        "phrase": lambda: phrases(others, _PHRASE, "phrase"),
        "meaning": meaning,
        "relation": relation,
        "rows": rows,
        "mixed": mixed,
    }


def _has(document: Document, field: str, value: str) -> bool:
    own = document.fields.get(field)
    return isinstance(own, tuple) and value in own


def random_vectors(count: int, dimension: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return random vectors of length 1, for collections whose size matters and not what they say."""
    found = np.random.default_rng(seed).standard_normal((count, dimension), np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)
