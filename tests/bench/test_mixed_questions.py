"""Questions of five classes over one collection: what is right follows from how they were made."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from consilience.bench.mixed_questions import (
    CLASSES,
    FILMS,
    StalledStore,
    mixed_collection,
    mixed_questions,
    random_vectors,
    recall_at,
)
from consilience.errors import DataError


def write(folder: Path, rows: list[dict[str, object]], queries: list[tuple[str, str]]) -> None:
    folder.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet")
    asked = [{"_id": f"q{n}", "text": text, "split": "test"} for n, (text, _) in enumerate(queries)]
    judged = [{"query_id": f"q{n}", "corpus_id": name, "score": 1.0} for n, (_, name) in enumerate(queries)]
    parquet.write_table(pa.Table.from_pylist(asked), folder / "queries.parquet")
    parquet.write_table(pa.Table.from_pylist(judged), folder / "qrels.parquet")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mixed")
    (place / "tasks" / "movies_store").mkdir(parents=True)
    films = [
        {
            "_id": f"mov-{n}",
            "title": f"Film {n}",
            "year": 1990 + n % 7,
            "genres": json.dumps(["Drama"]),
            "cast": json.dumps([f"Some Actor{n}"]),
            "text": " ".join(f"film{n}word{k}" for k in range(20)),
        }
        for n in range(20)
    ]
    parquet.write_table(pa.Table.from_pylist(films), place / "tasks" / "movies_store" / FILMS)
    for name, column in (("law_dccode", "section"), ("news_agnews", "topic")):
        rows = [
            {"_id": f"{name}-{n}", "title": "", "text": " ".join(f"{name}{n}w{k}" for k in range(20)), column: str(n)}
            for n in range(12)
        ]
        write(place / "retrieval" / name, rows, [(f"what {row['_id']} says", str(row["_id"])) for row in rows])
    words = [
        {"_id": f"wn-{n}", "title": "", "text": f"word{n}, name{n}. A kind of word{n + 1}.", "lexname": "noun"}
        for n in range(12)
    ]
    write(place / "retrieval" / "lexical_wordnet", words, [("a b c", "wn-1")])
    return place


def test_every_class_has_questions_with_answers(root: Path) -> None:
    collection = mixed_collection(root, size=48)
    assert {one.source for one in collection.documents} == {FILMS, "law.txt", "news.txt", "words.txt"}
    questions = mixed_questions(collection, 5)
    assert questions == mixed_questions(collection, 5) and [one.kind for one in questions[::5]] == list(CLASSES)
    texts = {one.id: one for one in collection.documents}
    for one in questions:
        assert one.gold and set(one.gold) <= set(texts)
        first = texts[one.gold[0]]
        if one.kind in ("phrase", "mixed"):
            assert one.text.split('"')[1] in first.text
        if one.kind in ("rows", "mixed"):
            assert str(first.fields["year"]) in one.text
        if one.kind == "relation":
            assert len(one.gold) == 2 and texts[one.gold[1]].text.split(",")[0] in first.text
    assert sum(one.held_out for one in questions) == 10
    names = {edge.document for edge in collection.edges}
    assert names <= set(texts) and all(edge.relation == "kind of" for edge in collection.edges)


def test_measures_and_what_stands_in_for_others() -> None:
    assert recall_at(list("abc"), list("ac"), k=1) == 1 and recall_at([], ["a"]) == 0
    assert random_vectors(3, 8).shape == (3, 8) and len(StalledStore(0).search(["a", "b"], 3)) == 2


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no films here"):
        mixed_collection(tmp_path)
