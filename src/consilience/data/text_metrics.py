"""Scores of answers in words: exact match, token F1, Rouge-L and entity F1, after the usual normalisation."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from consilience.errors import DataError, did_you_mean

__all__ = ["TEXT_METRICS", "entities", "normalise", "score_answer"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ENTITY = re.compile(r"(?P<text>[^<>]*)<(?P<kind>[^<>]+)>")


def normalise(text: str) -> str:
    """Return a text in lower case, without punctuation and articles, white space squeezed.

    >>> normalise("The  Heart-rate, a.k.a. pulse!")
    'heartrate aka pulse'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def entities(text: str) -> set[tuple[str, str]]:
    """Return the (text, type) pairs of an answer like "aspirin <DRUG>, fever <SIGN>"; what is repeated counts once.

    >>> sorted(entities("Aspirin <DRUG>, fever <SIGN> , aspirin <DRUG>"))
    [('aspirin', 'drug'), ('fever', 'sign')]
    """
    found = ((match["text"].lstrip(" ,"), match["kind"]) for match in _ENTITY.finditer(text))
    return {(normalise(name), kind.strip().lower()) for name, kind in found if normalise(name)}


def _f1(common: int, predicted: int, wanted: int) -> float:
    return 2 * common / (predicted + wanted) if common else 0.0


def _exact(predicted: str, wanted: str) -> float:
    return float(normalise(predicted) == normalise(wanted))


def _token_f1(predicted: str, wanted: str) -> float:
    left, right = (Counter(normalise(text).split()) for text in (predicted, wanted))
    return _f1((left & right).total(), left.total(), right.total())


def _rouge_l(predicted: str, wanted: str) -> float:
    left, right = (normalise(text).split() for text in (predicted, wanted))
    row = [0] * (len(right) + 1)  # longest common subsequence, one row at a time
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return _f1(row[-1], len(left), len(right))


def _entity_f1(predicted: str, wanted: str) -> float:
    left, right = entities(predicted), entities(wanted)
    return _f1(len(left & right), len(left), len(right))


TEXT_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact": _exact,
    "token_f1": _token_f1,
    "rouge_l": _rouge_l,
    "entity_f1": _entity_f1,
}
"""Name -> score of a prediction against one answer, 0 to 1."""


def score_answer(metric: str, predicted: str, answers: Sequence[str]) -> float:
    """Return the score of a prediction, the best over all right answers, 0 to 1.

    >>> score_answer("exact", "The heart.", ["the lung", "heart"])
    1.0
    >>> round(score_answer("rouge_l", "the cat sat here", ["a cat here"]), 3)
    0.8
    >>> score_answer("entity_f1", "aspirin <DRUG>, pain <DRUG>", ["aspirin <DRUG>"]) == 2 / 3
    True

    "exact": equal once normalised; "token_f1": F1 of the bags of words; "rouge_l": F1 of the longest common
    subsequence of words; "entity_f1": F1 of (text, type) pairs. An empty prediction scores 0, also where an answer is
    empty once normalised. Raises DataError for an unknown metric or no answers. Sources: the evaluation of SQuAD,
    arXiv 1606.05250; Rouge, Lin 2004.
    """
    if metric not in TEXT_METRICS:
        raise DataError(f"metric {metric!r} is unknown{did_you_mean(metric, TEXT_METRICS)}")
    if not answers:
        raise DataError("a prediction needs at least one right answer to be scored against")
    if not predicted.strip():
        return 0.0
    return max(TEXT_METRICS[metric](predicted, answer) for answer in answers)
