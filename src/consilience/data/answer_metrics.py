"""Scores of short answers in any script: exact match, token F1, precision, recall, containment."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from consilience.errors import DataError, did_you_mean

__all__ = ["ANSWER_METRICS", "answer_tokens", "has_answer", "normalise_answer", "score_answers"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# Scripts that write no blanks between words; one character is one token there.
_UNSPACED = re.compile(
    r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)


def normalise_answer(text: str) -> str:
    """Return a text in lower case with letters, marks and digits of all scripts only; English articles dropped.

    >>> normalise_answer("The  Eiffel-Tower, Paris!")
    'eiffeltower paris'
    >>> normalise_answer("Эйфелева башня"), normalise_answer("エッフェル塔。")
    ('эйфелева башня', 'エッフェル塔')
    >>> normalise_answer("Ｐａｒｉｓ １８８９")
    'paris 1889'

    Forms that look different and are the same character are made equal (NFKC). A text of articles alone keeps them:
    "A" can be the answer.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " if c.isspace() else "" for c in folded)
    return " ".join(_ARTICLES.sub(" ", kept).split() or kept.split())


def answer_tokens(text: str) -> list[str]:
    """Return the words of a text once normalised; in scripts without blanks (Chinese, Thai) every character is one.

    >>> answer_tokens("the Louvre, Paris"), answer_tokens("東京 tower")
    (['louvre', 'paris'], ['東', '京', 'tower'])
    """
    return _UNSPACED.sub(r" \1 ", normalise_answer(text)).split()


def has_answer(text: str, answers: Sequence[str]) -> bool:
    """Return whether a text has one of the answers as whole words, once normalised.

    >>> has_answer("It was built in 1889.", ["1889"]), has_answer("He went to a party.", ["art"])
    (True, False)

    An answer without letters or digits is in no text. Source: the top-k accuracy of DPR, arXiv 2004.04906.
    """
    words = f" {' '.join(answer_tokens(text))} "
    return any(f" {' '.join(tokens)} " in words for answer in answers if (tokens := answer_tokens(answer)))


def _exact(predicted: str, wanted: str) -> float:
    return float(normalise_answer(predicted) == normalise_answer(wanted))


def _contains(predicted: str, wanted: str) -> float:
    return float(normalise_answer(wanted) in normalise_answer(predicted))


def _counts(predicted: str, wanted: str) -> tuple[int, int, int]:
    """Return how many tokens are in both, in the prediction, in the answer."""
    left, right = Counter(answer_tokens(predicted)), Counter(answer_tokens(wanted))
    return (left & right).total(), left.total(), right.total()


def _precision(predicted: str, wanted: str) -> float:
    common, left, _ = _counts(predicted, wanted)
    return common / left if common else 0.0


def _recall(predicted: str, wanted: str) -> float:
    common, _, right = _counts(predicted, wanted)
    return common / right if common else 0.0


def _f1(predicted: str, wanted: str) -> float:
    common, left, right = _counts(predicted, wanted)
    return 2 * common / (left + right) if common else 0.0


ANSWER_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": _exact,
    "f1": _f1,
    "precision": _precision,
    "recall": _recall,
    "contains": _contains,
}
"""Name -> score of a prediction against one answer, 0 to 1."""


def score_answers(metric: str, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
    """Return the score of every prediction, the best over its right answers, 0 to 1.

    >>> score_answers("f1", ["in 1889, by Eiffel", "Paris"], [["1889"], ["Lyon", "paris"]])
    [0.4, 1.0]
    >>> score_answers("contains", ["巴黎鐵塔"], [["巴黎"]])
    [1.0]

    "exact_match": equal once normalised; "precision", "recall", "f1": of the bags of tokens; "contains": the normalised
    answer is somewhere in the normalised prediction, also inside a word (`has_answer` wants whole words). What has no
    letter or digit, prediction or answer, scores 0. Raises DataError for an unknown metric, for numbers of predictions
    and answers that differ, or a prediction without any right answer. Source: the evaluation of SQuAD, arXiv
    1606.05250, its normalisation widened to all scripts.
    """
    if metric not in ANSWER_METRICS:
        raise DataError(f"metric {metric!r} is unknown{did_you_mean(metric, ANSWER_METRICS)}")
    if len(predictions) != len(answers):
        raise DataError(f"{len(predictions)} predictions for the answers of {len(answers)} questions; give as many")
    if empty := [place for place, right in enumerate(answers) if not right]:
        raise DataError(f"question {empty[0]} ({len(empty)} in all) has no right answer to be scored against")
    score = ANSWER_METRICS[metric]
    return [
        max(score(predicted, a) if normalise_answer(predicted) and normalise_answer(a) else 0.0 for a in right)
        for predicted, right in zip(predictions, answers, strict=True)
    ]
