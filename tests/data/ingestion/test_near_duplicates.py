from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.ingestion.near_duplicates import NearDuplicates, shingles
from consilience.data.ingestion.reading import Reading
from consilience.errors import RequestError


def text_of(draw: random.Random, count: int = 300) -> list[str]:
    return [f"w{draw.randrange(5000)}" for _ in range(count)]


def similarity(a: str, b: str) -> float:
    left, right = set(shingles(a).tolist()), set(shingles(b).tolist())
    return len(left & right) / len(left | right)


def test_candidates_are_found_and_none_below_the_threshold() -> None:
    draw, missed, close = random.Random(0), 0, 0
    for _ in range(150):
        words = text_of(draw)
        other = list(words)
        for _ in range(draw.randrange(6)):
            other[draw.randrange(len(other))] = "changed"
        first, second = " ".join(words), " ".join(other)
        with NearDuplicates(0.9) as known:
            assert known.seen("a", first) is None
            found, true = known.seen("b", second), similarity(first, second)
        if found is not None:
            assert found == ("a", true) and true >= 0.9
        elif true >= 0.9:
            missed += 1
        close += true >= 0.9
    assert close > 30 and missed <= 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), max_size=40), st.floats(0.1, 1.0))
def test_a_text_is_the_same_as_itself_in_any_case_and_punctuation(words: list[str], threshold: float) -> None:
    with NearDuplicates(threshold) as known:
        assert known.seen("a", " ".join(words)) is None
        assert known.seen("b", ", ".join(words).upper()) == ("a", 1.0)
        assert known.seen("c", "something else entirely, of other words") is None


def test_the_nearest_is_named_and_thresholds_are_checked() -> None:
    words = text_of(random.Random(1))
    with NearDuplicates(0.5) as known:
        known.seen("far", " ".join([*words[:200], *text_of(random.Random(2), 60)]))
        found = known.seen("here", " ".join(words[:250]))
        assert found is not None and found[0] == "far" and 0.5 <= found[1] < 1
    for wrong in (0.0, 1.1, float("nan")):
        with pytest.raises(RequestError, match="similarity"):
            NearDuplicates(wrong)
    assert shingles("").dtype == np.uint32 and len(shingles("")) == 1


def test_reading_leaves_near_duplicates_out_and_says_of_what(tmp_path: Path) -> None:
    words = text_of(random.Random(3))
    (tmp_path / "a.txt").write_text(" ".join(words))
    (tmp_path / "b.txt").write_text(" ".join(words) + " one more")
    (tmp_path / "c.txt").write_text(" ".join(text_of(random.Random(4))))
    reading = Reading(tmp_path, near_duplicates=0.9)
    assert [one.id for one in reading] == ["a.txt", "c.txt"]
    assert reading.counts["near duplicates"] == 1 and reading.counts["items"] == 3
    assert reading.notices[0].item == "b.txt" and reading.notices[0].text.endswith("the same as a.txt")
