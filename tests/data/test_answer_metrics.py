"""Answer metrics in every script."""

from __future__ import annotations

import pytest

from consilience.data.answer_metrics import ANSWER_METRICS, answer_tokens, has_answer, normalise_answer, score_answers
from consilience.errors import DataError

WORDS = {
    "ja": "エッフェル塔",
    "ru": "Эйфелева башня",
    "ar": "برج إيفل",
    "hi": "एफिल टॉवर",
    "ko": "에펠탑",
    "th": "หอไอเฟล",
}


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("metric", ANSWER_METRICS)
def test_other_scripts_are_compared_not_erased(metric, word):
    others = [other for other in WORDS.values() if other != word]
    assert score_answers(metric, [word, word], [[word], others]) == [1.0, 0.0]


def test_normalisation():
    assert normalise_answer("  The\tQuick, brown-fox! ") == "quick brownfox"
    assert normalise_answer("Straße") == normalise_answer("STRASSE")
    assert normalise_answer("cafe\u0301") == normalise_answer("café")
    assert normalise_answer("A") == "a"
    assert answer_tokens("2024年 in 東京") == ["2024", "年", "in", "東", "京"]


def test_the_best_answer_counts():
    assert score_answers("f1", ["red car"], [["blue", "red"]]) == [pytest.approx(2 / 3)]
    assert score_answers("precision", ["red car"], [["blue", "red"]]) == [0.5]
    assert score_answers("recall", ["red car"], [["red car park", "red"]]) == [1.0]
    assert score_answers("exact_match", ["The car."], [["car"]]) == [1.0]
    assert score_answers("contains", ["cargo"], [["car"]]) == [1.0] and not has_answer("cargo", ["car"])
    assert has_answer("a Car, red", ["the red", "bus"])


@pytest.mark.parametrize("metric", ANSWER_METRICS)
def test_nothing_scores_nothing(metric):
    assert score_answers(metric, ["", "?!", "x"], [["x"], ["..."], ["?"]]) == [0.0, 0.0, 0.0]
    assert score_answers(metric, [], []) == []


def test_refusals():
    with pytest.raises(DataError, match="did you mean 'exact_match'"):
        score_answers("exactmatch", ["a"], [["a"]])
    with pytest.raises(DataError, match="2 predictions for the answers of 1"):
        score_answers("f1", ["a", "b"], [["a"]])
    with pytest.raises(DataError, match="question 1 "):
        score_answers("f1", ["a", "b"], [["a"], []])
