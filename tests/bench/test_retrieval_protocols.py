"""LIMIT, choices, and runs: what the golden cases do not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.bench.free_embedding import fit_embeddings, moment_curve
from consilience.bench.limit import limit_data, relevance_pattern
from consilience.bench.multiple_choice import multiple_choice, pooled
from consilience.bench.runs import best_passages, measure_run, read_qrels, read_run, write_qrels, write_run
from consilience.errors import DataError, RequestError


def test_the_texts_of_limit_say_what_the_pattern_says() -> None:
    relevance = relevance_pattern("dense", queries=40)
    data = limit_data(relevance, documents=30, seed=3)
    texts = dict(zip(data.documents.ids, data.documents.texts, strict=True))
    queries = dict(zip(data.queries("test").ids, data.queries("test").texts, strict=True))
    for query, judged in data.qrels("test").items():
        thing = queries[query].removeprefix("Who likes ").removesuffix("?")
        liked = {n for n, text in texts.items() if thing in text.removesuffix(".").replace(" and ", ", ").split(", ")}
        liked |= {n for n, text in texts.items() if f"likes {thing}," in text}
        assert liked == set(judged)
    assert len(texts) == 30 and all(45 <= text.count(",") + 2 <= 50 for text in texts.values())
    assert limit_data(relevance, documents=30, seed=3).documents == data.documents


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "dense"}, "number of documents"),
        ({"pattern": "dense", "queries": 3, "k": 0}, "k is 0"),
        ({"pattern": "cycle", "documents": 1}, "1 documents"),
        ({"pattern": "disjoint", "documents": 6, "queries": 4}, "has 3"),
        ({"pattern": "dense", "documents": 2000}, "at most 200000"),
        ({"pattern": "dens", "documents": 5}, "there are dense"),
    ],
)
def test_patterns_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        relevance_pattern(**options)  # type: ignore[arg-type]


def test_random_patterns_are_different_subsets() -> None:
    found = relevance_pattern("random", queries=15, documents=6, k=2, seed=1)
    assert len(set(found)) == 15 and all(len(set(one)) == 2 for one in found)
    with pytest.raises(RequestError, match="attributes"):
        limit_data(found, attributes=["a", "b"])


def test_the_curve_returns_every_subset_and_a_small_space_does_not() -> None:
    documents, subsets, queries = moment_curve(np.cos(np.arange(9) * np.pi / 9), 3)
    order = (queries @ documents.T).argsort(axis=1)[:, -3:]
    assert all(set(row) == set(own) for row, own in zip(order.tolist(), subsets, strict=True))
    fitted = fit_embeddings(relevance_pattern("dense", documents=9), dimension=2, steps=400)
    assert fitted.accuracy < 1 and fitted.losses[-1] < fitted.losses[0]
    with pytest.raises(RequestError, match="same number"):
        fit_embeddings([(0,), (1, 2)])


def test_choices_are_checked_and_the_first_of_equals_wins() -> None:
    pool = np.eye(3, dtype=np.float32)
    found = multiple_choice(np.ones((1, 3), np.float32), pool, [[2, 0, 2]], [0])
    assert found.chosen == (0,) and found.doubled == 1 and found.accuracy == 1
    with pytest.raises(RequestError, match=r"(?s)question 0 has no options.*right option is 5"):
        multiple_choice(np.ones((2, 3), np.float32), pool, [[], [1]], [0, 5])
    ranks, gains, recalled = pooled(np.ones((1, 3), np.float32), pool, [2])
    assert ranks.tolist() == [3] and gains[0] == pytest.approx(0.5) and recalled[0] == 1


names = st.text("abc:1é", min_size=1, max_size=4)
runs = st.dictionaries(names, st.dictionaries(names, st.floats(-5, 5), min_size=1, max_size=5), max_size=4)


@given(runs)
def test_files_hold_what_they_are_given(run: dict[str, dict[str, float]]) -> None:
    import tempfile

    folder = Path(tempfile.mkdtemp())
    write_run(run, folder / "run.txt")
    assert read_run(folder / "run.txt") == run
    whole = {query: {document: float(round(label)) for document, label in own.items()} for query, own in run.items()}
    write_qrels(whole, folder / "qrels.txt")
    assert read_qrels(folder / "qrels.txt") == whole


def test_lines_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 d 1 0.5 x\nq Q0 d 2 0.4 x\nq Q0 e 1\nq Q0 f 1 high x\n")
    with pytest.raises(DataError, match=r"(?s)line 2: document 'd' stands twice.*line 3: 4 columns.*line 4"):
        read_run(tmp_path / "run")
    with pytest.raises(DataError, match="blanks"):
        write_run({"a b": {"d": 1.0}}, tmp_path / "out")


def test_measures_count_what_is_missing() -> None:
    qrels = {"a": {"d": 1.0}, "b": {"d": 1.0}, "c": {"d": 0.0}}
    with pytest.warns(UserWarning, match="'z'"):
        found = measure_run({"a": {"d": 1.0}, "z": {"d": 1.0}}, qrels, binary=("RR", "R@10"))
    assert found["RR"] == pytest.approx(1 / 3) and found["nDCG@10"] == pytest.approx(1 / 3)
    with pytest.warns(UserWarning, match="count as 0"):
        assert measure_run({"a": {"d": 1.0}}, {"a": {"d": 0.5}}, binary=("RR",)) == {"nDCG@10": 0, "nDCG@5": 0, "RR": 1}
    with pytest.raises(DataError, match="nan"):
        measure_run({"a": {"d": float("nan")}}, qrels)
    assert best_passages({"q": {"plain": 1.0, "p:1": 0.5, "p:2": 0.7}}) == {"q": {"plain": 1.0, "p": 0.7}}
