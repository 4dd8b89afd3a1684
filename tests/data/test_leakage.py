from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from consilience.data import ReservedQueries, RetrievalData, Suite
from consilience.data.reserved import default_data_folder
from consilience.data.suite import Domain
from consilience.errors import DataError, LeakageError

NOTHING = ReservedQueries.empty()


def dataset(name: str, queries: dict[str, tuple[str, str]], relevant: int = 1) -> RetrievalData:
    return RetrievalData.of(
        name,
        documents={"d1": "first", "d2": "second"},
        queries=queries,
        judgements=[(query, f"d{1 + index % 2}", relevant) for index, query in enumerate(queries)],
    )


def test_learners_are_refused_the_test_split() -> None:
    data = dataset("code", {"a": ("sort", "train"), "b": ("open", "test"), "c": ("cut", "dev")})
    with pytest.raises(LeakageError, match="a learner asked for the split 'test'"):
        data.view("test")
    for split in ("test", "dev"):
        with pytest.raises(LeakageError, match=f"training pairs of the split '{split}'"):
            data.training_pairs(split=split)
    with pytest.raises(DataError, match=r"unknown role 'trian'; did you mean 'train'\?"):
        data.view("trian")


def test_roles_and_transductive_views() -> None:
    data = dataset("code", {"a": ("sort", "train"), "b": ("open", "test"), "c": ("cut", "dev")})
    assert data.view("train").qrels == {"a": {"d1": 1.0}}
    assert data.view("dev").queries.texts == ("cut",)
    plain = data.view("unlabelled")
    assert (plain.qrels, plain.queries.texts, plain.transductive) == (None, ("sort",), False)
    seen = data.view("unlabelled", of="test")
    assert (seen.qrels, seen.queries.texts, seen.transductive) == (None, ("open",), True)
    with pytest.raises(DataError, match="role 'train' is the split 'train', not 'test'"):
        data.view("train", of="test")


def test_held_out_queries_of_this_and_other_datasets_are_dropped_and_counted() -> None:
    data = dataset(
        "code",
        {
            "a": ("Sort  a LIST?", "train"),
            "b": ("open a file", "train"),
            "c": ("close a file !", "train"),
            "d": ("keep me", "train"),
            "e": ("sort a list", "test"),
        },
    )
    other = dataset("shell", {"x": ("Open a file.", "dev"), "y": ("close a file", "test"), "z": ("keep me", "train")})
    pairs = data.training_pairs(against=[other], reserved=NOTHING)
    assert pairs.queries == ("keep me",)
    assert pairs.dropped["same as a dev or test query"] == 3
    assert set(pairs.sources) == {"code", "shell"}
    assert data.training_pairs(reserved=NOTHING).dropped["same as a dev or test query"] == 1
    with pytest.raises(LeakageError, match=r"3 training queries are held out or reserved(.|\n)*held out in shell"):
        data.training_pairs(against=[other], reserved=NOTHING, on_leak="refuse")


def test_a_suite_checks_against_all_its_domains() -> None:
    code = dataset("code", {"a": ("sort", "train"), "b": ("keep", "train"), "c": ("x", "test")})
    shell = dataset("shell", {"a": ("y", "train"), "c": ("SORT.", "test")})
    suite = Suite("both", {"code": Domain(code), "shell": Domain(shell)})
    assert suite.training_pairs("code", reserved=NOTHING).queries == ("keep",)


def test_reserved_queries_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"what is numpy?").hexdigest()[:16]
    (tmp_path / "reserved_queries.txt").write_text(digest + "\n")
    monkeypatch.setenv("CONSILIENCE_DATA", str(tmp_path))
    data = dataset("code", {"a": ("What is  NumPy?", "train"), "b": ("what is numpy", "train"), "c": ("keep", "train")})
    pairs = data.training_pairs()
    assert pairs.queries == ("keep",)
    assert pairs.dropped["reserved"] == 2
    assert "reserved queries" in pairs.sources
    monkeypatch.setenv("CONSILIENCE_DATA", str(tmp_path / "absent"))
    assert len(data.training_pairs()) == 2
    monkeypatch.delenv("CONSILIENCE_DATA")
    assert default_data_folder() == Path("../shared/data")


def test_a_bad_reserved_list_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("0123456789abcdef\nnot-a-hash\n")
    with pytest.raises(DataError, match="entry 2: 'not-a-hash' is not 16 hexadecimal digits"):
        ReservedQueries.read(path)
    with pytest.raises(DataError, match="cannot be read"):
        ReservedQueries.read(tmp_path / "absent.txt")


def test_repeated_queries_become_one_with_all_relevant_documents() -> None:
    data = dataset("code", {"a": ("sort", "train"), "b": ("Sort?", "train")})
    pairs = data.training_pairs(reserved=NOTHING)
    assert pairs.positives == ((0, 1),)
    assert pairs.pairs() == [("sort", "first"), ("sort", "second")]
    assert pairs.dropped["repeated"] == 1


def test_judged_negatives_are_kept_apart_and_empty_queries_dropped() -> None:
    data = RetrievalData.of(
        "code",
        documents={"d1": "first", "d2": "second"},
        queries={"a": ("sort", "train"), "b": ("nothing", "train")},
        judgements=[("a", "d2", 1), ("a", "d1", 0)],
    )
    pairs = data.training_pairs(reserved=NOTHING)
    assert (pairs.positives, pairs.negatives) == (((1,),), ((0,),))
    assert pairs.dropped["no relevant document"] == 1
    facts = pairs.describe()
    assert (facts["queries"], facts["pairs"]) == (1, 1)


def test_nothing_left_is_an_error_with_counts() -> None:
    data = dataset("code", {"a": ("sort", "train"), "b": ("sort!", "dev")})
    with pytest.raises(DataError, match=r"none of its 1 training queries is left \(1 same as a dev or test query\)"):
        data.training_pairs(reserved=NOTHING)
