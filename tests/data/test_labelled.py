"""Classification sets: what is read, what a learner may see, what never meets."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from consilience.data import ReservedQueries
from consilience.data.labelled import LabelledData
from consilience.errors import DataError, LeakageError

LABELS = ("bad", "good")


def write(folder, rows, labels=LABELS, columns=("text", "label", "split")):
    folder.mkdir(parents=True, exist_ok=True)
    table = dict(zip(columns, zip(*rows, strict=True), strict=True))
    parquet.write_table(pa.table({name: list(values) for name, values in table.items()}), folder / "data.parquet")
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def test_a_folder_is_read_as_it_was_written(tmp_path):
    rows = [("awful", 0, "train"), ("great", 1, "train"), ("fine", 1, "dev"), ("meh", 0, "test")]
    data = LabelledData.open(write(tmp_path / "tone", rows))
    assert data.name == "tone" and data.labels == LABELS and data.notes == ()
    assert data.examples("train").pairs() == [("awful", 0), ("great", 1)]
    assert data.examples("test").pairs() == [("meh", 0)]
    same = LabelledData.of("other name", LABELS, train=rows_of(rows, "train"), dev=[("fine", 1)], test=[("meh", 0)])
    assert data.content_hash == same.content_hash
    assert data.content_hash != LabelledData.of("x", LABELS, train=[("awful", 1)], test=[("meh", 0)]).content_hash


def rows_of(rows, split):
    return [(text, label) for text, label, found in rows if found == split]


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        LabelledData.open(tmp_path)
    with pytest.raises(DataError, match="no column split"):
        LabelledData.open(write(tmp_path / "a", [("x", 0)], columns=("text", "label")))
    with pytest.raises(DataError, match="'valid'"):
        LabelledData.open(write(tmp_path / "b", [("x", 0, "valid")]))
    with pytest.raises(DataError, match="values are missing in text"):
        LabelledData.open(write(tmp_path / "c", [("x", 0, "train"), (None, 1, "train")]))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "data.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="not a parquet file"):
        LabelledData.open(tmp_path / "d")
    with pytest.raises(DataError, match=r"outside 0 to 1, such as 2[\s\S]*1 texts are empty"):
        LabelledData.of("e", LABELS, train=[("x", 2)], dev=[(" ", 0)])
    with pytest.raises(DataError, match="at least two"):
        LabelledData.of("f", ("only",), train=[("x", 0)])


def test_validation_and_test_never_meet():
    data = LabelledData.of("tone", LABELS, dev=[("Great film!", 1), ("poor", 0)], test=[("great  film", 1)])
    assert data.examples("dev").pairs() == [("poor", 0)]
    assert data.notes == ("1 dev texts are in test too and were left out of dev",)


def test_training_texts_are_held_out_nowhere():
    other = LabelledData.of("other", LABELS, test=[("shared text", 0)])
    data = LabelledData.of(
        "tone",
        LABELS,
        train=[("fine", 1), ("Seen in dev.", 0), ("shared text", 1), ("secret", 0)],
        dev=[("seen in dev", 0)],
    )
    kept = data.training(against=[other], reserved=ReservedQueries.of(["Secret"]))
    assert kept.pairs() == [("fine", 1)]
    assert kept.dropped == {"same as a dev or test text": 2, "reserved": 1}
    with pytest.raises(LeakageError, match="Seen in dev"):
        data.training(on_leak="refuse", reserved=ReservedQueries.empty())
    with pytest.raises(DataError, match="none of its training texts"):
        LabelledData.of("x", LABELS, train=[("a", 0)], test=[("A.", 0)]).training()


def test_roles():
    data = LabelledData.of("tone", LABELS, train=[("a", 0)], dev=[("b", 1)], test=[("c", 1)])
    assert data.view("train").pairs() == [("a", 0)] and data.view("dev").pairs() == [("b", 1)]
    with pytest.raises(LeakageError, match="'test'"):
        data.view("test")
    blind = data.view("unlabelled", of="test")
    assert blind.texts == ("c",) and blind.labels is None and blind.transductive
    assert not data.view("unlabelled").transductive
    with pytest.raises(LeakageError, match="no labels"):
        blind.pairs()
    with pytest.raises(DataError, match="unknown role 'trian'"):
        data.view("trian")
    with pytest.raises(DataError, match="no split 'valid'"):
        data.examples("valid")


def test_samples_are_seeded_nested_and_in_order():
    data = LabelledData.of("tone", LABELS, train=[(f"text {index:03}", index % 10 // 8) for index in range(200)])
    texts = data.examples("train")
    small, large = texts.sample(20, seed=1), texts.sample(50, seed=1)
    assert set(small.texts) < set(large.texts) and list(large.texts) == sorted(large.texts)
    assert small.texts != texts.sample(20, seed=2).texts and small == texts.sample(20, seed=1)
    assert texts.sample(None) is texts and texts.sample(500) is texts
    even = texts.balanced(7)
    assert [label for _, label in even.pairs()].count(0) == 7 == [label for _, label in even.pairs()].count(1)
    with pytest.raises(DataError, match="at most 0"):
        texts.sample(0)
