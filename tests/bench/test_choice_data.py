"""Questions with options: what is read, what is refused, and a head that learns to choose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from consilience.bench.choice_data import choose_by_head, read_choice_data
from consilience.errors import DataError, RequestError


def folder(path: Path, choices: dict[str, list[str]] | None, right: dict[str, str]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    corpus = {"_id": ["a", "b", "c"], "title": [""] * 3, "text": ["a stone", "a dog", "a tree"]}
    queries = {"_id": list(right), "text": [f"what {key}?" for key in right], "split": ["test"] * len(right)}
    if choices is not None:
        queries["choices"] = [json.dumps(choices[key]) for key in right]
    count = len(right)
    qrels = {
        "query_id": list(right),
        "corpus_id": list(right.values()),
        "score": [1] * count,
        "split": ["test"] * count,
    }
    for name, columns in (("corpus", corpus), ("queries", queries), ("qrels", qrels)):
        parquet.write_table(pyarrow.table(columns), path / f"{name}.parquet")
    return path


def test_options_are_rows_of_the_pool_and_the_right_one_is_known(tmp_path: Path) -> None:
    place = folder(tmp_path, {"barks": ["c", "b"], "grows": ["a", "b", "c"]}, {"barks": "b", "grows": "c"})
    data = read_choice_data(place)
    assert data.questions == ("what barks?", "what grows?") and data.pool == ("a stone", "a dog", "a tree")
    assert data.options == ((2, 1), (0, 1, 2)) and data.right == (1, 2) and data.relevant == (1, 2)
    first = read_choice_data(place, most=1)
    assert first.questions == ("what barks?",) and first.options == ((2, 1),) and first.pool == data.pool


def test_every_question_that_cannot_be_answered_is_named(tmp_path: Path) -> None:
    place = folder(tmp_path, {"barks": ["c", "a"], "grows": ["z", "c"]}, {"barks": "b", "grows": "c"})
    with pytest.raises(DataError, match=r"(?s)question barks: relevant \['b'\].*question grows.*no documents: z"):
        read_choice_data(place)


def test_a_dataset_without_options_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'choices'"):
        read_choice_data(folder(tmp_path, None, {"barks": "b"}))


def test_a_head_learns_what_the_product_does_not_show_and_repeats_itself() -> None:
    random = np.random.default_rng(0)
    questions, pool = (random.normal(size=(count, 8)).astype(np.float32) for count in (120, 300))
    pool[:, 0] += np.where(np.arange(300) % 2, 2, -2)  # right options are odd rows, whatever the question
    options = [
        [int(2 * random.integers(150)), int(2 * random.integers(150)) + 1] + [0] * (row % 2) for row in range(120)
    ]

    def train() -> NDArray[np.float64]:
        return choose_by_head(
            questions, pool, options, [1] * 120, trained=range(80), tested=range(80, 120), learning_rate=0.01
        )

    found = train()
    assert found.shape == (40,) and found.mean() > 0.85
    assert found.tobytes() == train().tobytes()


def test_a_head_is_not_tested_on_what_it_was_trained_on() -> None:
    vectors = np.eye(2, dtype=np.float32)
    with pytest.raises(RequestError, match="1 of them are tested, too"):
        choose_by_head(vectors, vectors, [[0, 1], [1, 0]], [0, 0], trained=[0, 1], tested=[1])
    with pytest.raises(RequestError, match="0 questions to train on"):
        choose_by_head(vectors, vectors, [[0, 1], [1, 0]], [0, 0], trained=[], tested=[1])
