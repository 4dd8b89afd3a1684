from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from consilience.data import GradedData, ReservedQueries, RetrievalData
from consilience.data.metrics import spearman
from consilience.errors import DataError, LeakageError

TRAIN = [("a cat", "a kitten", 4.0), ("a dog", "a puppy", 5.0), ("a tax", "a court", 1.0)]


def test_held_out_and_reserved_pairs_are_dropped_and_counted() -> None:
    data = GradedData.of("pairs", train=TRAIN, test=[("A kitten.", "A  cat", 4.0)])
    searched = RetrievalData.of(
        "search", documents={"d": "x"}, queries={"q": ("A tax?", "test")}, judgements=[("q", "d", 1)]
    )
    kept = data.training(against=[searched], reserved=ReservedQueries.empty())
    assert (kept.first, kept.second, kept.scores) == (("a dog",), ("a puppy",), (1.0,))
    assert kept.dropped == {"same as a dev or test pair": 1, "same as a dev or test query": 1, "reserved": 0}
    assert set(kept.describe()["checked_against"]) == {"pairs", "search"}  # type: ignore[arg-type]
    with pytest.raises(DataError, match="none of its 3 training pairs is left"):
        data.training(against=[searched], reserved=ReservedQueries.of(["a puppy"]))
    with pytest.raises(LeakageError, match="the split 'test' were asked for"):
        data.training(split="test")


def test_dev_pairs_of_test_are_left_out_and_scores_are_scaled() -> None:
    data = GradedData.of("pairs", train=TRAIN, dev=[("x", "y", 2.5), ("u", "v", 0.0)], test=[("Y", "X.", 5.0)])
    assert data.pairs("dev").first == ("u",) and "1 dev pairs are in test too" in data.notes[0]
    assert data.pairs("train").scores == (0.8, 1.0, 0.2)
    assert GradedData.of("pairs", train=TRAIN, highest=10).pairs("train").scores == (0.4, 0.5, 0.1)
    assert len(data.pairs("train").sample(2)) == 2 and data.pairs("train").sample(9).first == data.pairs("train").first
    with pytest.raises(DataError, match="no split 'dev'; it has train"):
        GradedData.of("pairs", train=TRAIN).pairs("dev")


def test_wrong_pairs_are_reported_together() -> None:
    with pytest.raises(DataError) as caught:
        GradedData.of("pairs", highest=5, train=[("a", "b", -1.0), ("a", " ", 2.0)], test=[("a", "b", 6.0)])
    for part in ("train: 1 scores are outside 0 to 5, such as -1", "train: 1 pairs have an empty text", "such as 6"):
        assert part in str(caught.value)


def test_a_folder_is_read_and_checked(tmp_path: Path) -> None:
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [5.0, 1.0], "split": ["train", "dev"]}
    parquet.write_table(pa.table(columns), tmp_path / "data.parquet")
    data = GradedData.open(tmp_path, name="read")
    assert data.pairs("dev").scores == (0.2,) and data.folder == tmp_path
    again = GradedData.of("again", train=[("a", "c", 5.0)], dev=[("b", "d", 1.0)])
    assert data.content_hash == again.content_hash
    parquet.write_table(pa.table({**columns, "split": ["train", "x"]}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"unknown splits \['x'\]"):
        GradedData.open(tmp_path)
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="no column sentence1, sentence2, score, split; it has text"):
        GradedData.open(tmp_path)
    with pytest.raises(DataError, match=r"graded pairs are data\.parquet with sentence1"):
        GradedData.open(tmp_path / "nowhere")


def test_spearman_of_ties_and_of_what_it_cannot_measure() -> None:
    assert spearman([3, 1, 1], [0.9, 0.2, 0.2]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([0.5, 0.5], [0, 1]) == 0.0
    for predicted, scores, message in (
        ([1.0], [1.0], "at least two"),
        ([1.0, 2.0], [1.0, 1.0], "all 2 scores are 1"),
        ([1.0, float("nan")], [1.0, 2.0], "NaN or infinity"),
    ):
        with pytest.raises(DataError, match=message):
            spearman(predicted, scores)
