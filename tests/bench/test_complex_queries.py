"""Generated complex queries: labels follow from the metadata, and the same seed makes the same set."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from consilience.bench.complex_queries import KINDS, NAMES, ComplexSet, complex_sets


def write(folder: Path, rows: list[dict[str, str]], split: str = "test") -> None:
    folder.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet")
    asked = [{"_id": f"q{n}", "text": f"about {row['_id']}", "split": split} for n, row in enumerate(rows)]
    parquet.write_table(pa.Table.from_pylist(asked), folder / "queries.parquet")
    judged = [
        {"query_id": f"q{n}", "corpus_id": row["_id"], "score": 1.0, "split": split} for n, row in enumerate(rows)
    ]
    parquet.write_table(pa.Table.from_pylist(judged), folder / "qrels.parquet")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("complex")
    posts = [
        {"_id": f"{group}-{n}", "title": "", "text": f"{group} {n}", "group": group} for group in NAMES for n in "ab"
    ]
    write(place / "community_newsgroups", posts)
    long = "First sentence of the text. " + " ".join(f"word{n}" for n in range(80)) + ". Last sentence."
    write(place / "cisi", [{"_id": f"c{n}", "title": f"Title {n}", "text": f"{long} {n}"} for n in range(8)])
    packages = [
        {"_id": f"p{n}", "title": "", "text": f"package {n}\n\nlong text {n}", "section": "libs" if n % 2 else "games"}
        for n in range(12)
    ]
    write(place / "software_debian", packages)
    return place


def made(root: Path, seed: int = 0) -> list[ComplexSet]:
    return complex_sets(root, queries={"validation": 2, "test": 4}, documents=150, seed=seed)


def test_four_kinds_with_labels_and_no_query_twice(root: Path) -> None:
    sets = made(root)
    assert tuple(one.kind for one in sets) == KINDS and made(root) == sets != made(root, seed=1)
    for one in sets:
        assert {split: len(own) for split, own in one.queries.items()} == {"validation": 2, "test": 4}
        names = {document.id for document in one.documents}
        for split, own in one.qrels.items():
            assert set(own) == set(one.queries[split]) and all(
                labels and set(labels) <= names for labels in own.values()
            )
        assert {passage.parent for passage in one.passages} <= names
        assert all(passage.id.partition(":")[0] == passage.parent for passage in one.passages)
    assert not set(sets[0].queries["validation"].values()) & set(sets[0].queries["test"].values())


def test_labels_are_those_of_the_metadata(root: Path) -> None:
    operations, aspects, facts, constraint = made(root)
    group_of = {name: group for group, name in NAMES.items()}
    texts = {document.id: document.text for document in operations.documents}
    for key, query in operations.queries["test"].items():
        wanted, _, unwanted = query.replace(", but NOT", " but NOT").partition(" but NOT ")
        parts = [group_of[part] for part in wanted.replace(" OR ", " AND ").split(" AND ")]
        every = " OR " not in wanted
        expected = {
            name
            for name, text in texts.items()
            if (all if every else any)(f"{group} " in text for group in parts)
            and not (unwanted and f"{group_of[unwanted]} " in text)
        }
        assert set(operations.qrels["test"][key]) == expected
    for key, query in aspects.queries["test"].items():
        for name, grade in aspects.qrels["test"][key].items():
            assert all(f"{group_of[part]} " in texts[name] for part in query.split("; "))
            assert grade == (2 if texts[name].count("\n\n") == 1 else 1)
    for key, query in facts.queries["test"].items():
        (name,) = facts.qrels["test"][key]
        assert "Title" not in query and name in {document.id for document in facts.documents}
    for key, query in constraint.queries["test"].items():
        (name,) = constraint.qrels["test"][key]
        text = next(document.text for document in constraint.documents if document.id == name)
        assert text.startswith(f"Section {query.rpartition(' ')[2]}.")
