"""The copy with a byte a number gives what a search through all vectors gives, to the bit, or nothing."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consilience.stores import coded as module
from consilience.stores.coded import Coded, coded
from consilience.stores.vectors import _scores, search_vectors

SIZE = 48


def drawn(seed: int, count: int, kind: str) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, SIZE))
    if kind == "topics":
        rows = 0.3 * rows + random.normal(size=(20, SIZE))[random.integers(0, 20, count)]
    if kind == "one large dimension":
        rows[:, 3] += 8
    if kind == "long and short":
        rows *= random.lognormal(0, 2, (count, 1))
    if kind == "few different":
        rows = rows[random.integers(0, 30, count)]
    if kind == "zeros":
        rows *= 0
    return rows.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(30, 400),
    kind=st.sampled_from(["plain", "topics", "one large dimension", "long and short", "few different", "zeros"]),
    k=st.integers(1, 25),
    share=st.sampled_from([1.0, 0.9, 0.3]),
)
def test_what_is_certain_is_right_to_the_bit(seed: int, count: int, kind: str, k: int, share: float) -> None:
    import faiss

    rows, query = drawn(seed, count, kind), drawn(seed + 1, 1, "plain")
    copy = Coded.of(rows)
    allowed = None if share == 1 else np.random.default_rng(seed + 2).random(count) < share
    there = np.arange(count) if allowed is None else np.flatnonzero(allowed)
    assume(len(there) > k)
    found = copy.search(query, k, lambda places: _scores(rows, query, places), allowed)
    if found is None:
        assert copy.vain == 1
        return
    values, places = faiss.knn(query, rows[there], k, metric=faiss.METRIC_INNER_PRODUCT)
    assert found[1].tolist() == values[0].tolist()
    assert sorted(found[0].tolist()) == sorted(there[places[0]].tolist())


def test_rows_around_topics_are_certain_nearly_always() -> None:
    rows, queries = drawn(0, 8000, "topics"), drawn(1, 50, "plain")
    copy = Coded.of(rows)
    for query in queries:
        copy.search(query[None], 10, lambda places, query=query: _scores(rows, query[None], places))
    assert copy.searches == 50
    assert copy.vain <= 2


def test_alike_rows_are_left_alone_after_a_while() -> None:
    rows = drawn(0, 5000, "few different")
    copy = Coded.of(rows)
    for _ in range(20):
        assert copy.search(rows[:1], 10, lambda places: _scores(rows, rows[:1], places)) is None
    assert not copy.useful()


def test_the_copy_comes_with_the_third_search_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = drawn(0, 5000, "topics"), drawn(1, 30, "plain")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    segment = {"numbers": np.arange(5000), "vectors": rows}
    live = np.ones(5000, np.bool_)
    before = [search_vectors([segment], query[None], 10, live)[0] for query in queries[:2]]
    assert coded(rows) is None  # the third: it is made now
    for _ in range(3000):
        if (copy := coded(rows)) is not None:
            break
        time.sleep(0.01)
    assert copy is not None
    after = [search_vectors([segment], query[None], 10, live)[0] for query in queries]
    assert copy.searches == 30
    for old, new in zip(before, after, strict=False):
        assert old.numbers.tolist() == new.numbers.tolist()
        assert old.scores.tolist() == new.scores.tolist()
    monkeypatch.setattr(module, "_LEAST", 10_000)
    without = drawn(0, 5000, "topics")
    without /= np.linalg.norm(without, axis=1, keepdims=True)
    for query, new in zip(queries, after, strict=True):
        found = search_vectors([{**segment, "vectors": without}], query[None], 10, live)[0]
        assert found.numbers.tolist() == new.numbers.tolist()
        assert found.scores.tolist() == new.scores.tolist()


def test_copies_go_with_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    before = sum(module._COPIES._sizes.values())
    monkeypatch.setattr(module, "_LARGEST", before + 5000 * SIZE)
    first, second = drawn(0, 5000, "plain"), drawn(1, 5000, "plain")
    for _ in range(5):
        coded(first)
        coded(second)
    for _ in range(3000):
        if coded(first) is not None:
            break
        time.sleep(0.01)
    assert coded(first) is not None
    assert coded(second) is None  # no room for both
    assert sum(module._COPIES._sizes.values()) == before + 5000 * SIZE
    del second, first  # what had no room gives nothing back
    gc.collect()
    assert sum(module._COPIES._sizes.values()) == before


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), share=st.sampled_from([0.02, 0.2, 0.5, 0.999]), many=st.booleans())
def test_no_filter_changes_a_score(seed: int, share: float, many: bool) -> None:
    rows, queries = drawn(seed, 9000, "topics"), drawn(seed + 1, 9 if many else 2, "plain")
    live = np.random.default_rng(seed).random(9000) < share
    segment = {"numbers": np.arange(9000), "vectors": rows}
    every = search_vectors([segment], queries, 9000, np.ones(9000, np.bool_))
    some = search_vectors([segment], queries, 40, live)
    for one, few in zip(every, some, strict=True):
        passing = live[one.numbers]
        assert few.numbers.tolist() == one.numbers[passing][:40].tolist()
        if many:
            assert few.scores == pytest.approx(one.scores[passing][:40], abs=1e-4)
        else:
            assert few.scores.tolist() == one.scores[passing][:40].tolist()
