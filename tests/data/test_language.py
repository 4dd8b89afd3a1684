from __future__ import annotations

from pathlib import Path

import pytest

from consilience.data import LanguageData, ReservedQueries
from consilience.errors import DataError, LeakageError

NONE = ReservedQueries.empty()


def test_folders_hold_one_example_per_line(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a b"}\n\n{"prompt": "1+1=", "completion": "2\\u2028"}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "c"}')
    data = LanguageData.open(tmp_path)
    assert data.examples("train") == ("a b", ("1+1=", "2\u2028"))
    assert data.examples("test") == ("c",)
    assert data.content_hash == LanguageData.of("x", train=data.examples("train"), test=["c"]).content_hash
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        data.examples("dev")
    (tmp_path / "test.jsonl").write_text('{"text": "c"}\n{"prompt": "p"}')
    with pytest.raises(DataError, match=r"test\.jsonl, line 2"):
        LanguageData.open(tmp_path)
    with pytest.raises(DataError, match=r"none of train\.jsonl"):
        LanguageData.open(tmp_path / "absent")


def test_held_out_and_reserved_examples_are_dropped_or_refused() -> None:
    other = LanguageData.of("other", test=["Held  out there"])
    data = LanguageData.of(
        "x", train=["one", "held out there", ("Two", "2"), "secret question"], dev=[("two", "3")], test=["three"]
    )
    texts = data.training(against=[other], reserved=ReservedQueries.of(["Secret question"]))
    assert texts.examples == ("one",)
    assert texts.dropped == {"same as a dev or test example": 2, "reserved": 1}
    assert set(texts.sources) == {"x", "other", "reserved queries"}
    assert data.training(reserved=NONE).content_hash != texts.content_hash
    with pytest.raises(LeakageError, match=r"1 training examples are held out.*\n.*'Two' \(same as"):
        data.training(reserved=NONE, on_leak="refuse")
    with pytest.raises(DataError, match="none of its 1 training examples"):
        LanguageData.of("y", train=["a"], test=["A"]).training(reserved=NONE)


@pytest.mark.parametrize("bad", [("a", "b", "c"), 3, ("a", ""), ""])
def test_examples_are_texts_or_pairs(bad: object) -> None:
    with pytest.raises(DataError, match="train example 0"):
        LanguageData.of("x", train=[bad])  # type: ignore[list-item]
