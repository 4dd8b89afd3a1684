"""RAR-b: reasoning questions as retrieval, among a question's own options or in the pool of all answers.

Source: Xiao et al. 2024, RAR-b: Reasoning as Retrieval Benchmark (arXiv 2404.06347).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consilience.bench.search import normalised
from consilience.errors import Problems, RequestError

__all__ = ["Choices", "instructed", "multiple_choice", "pooled"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Choices:
    """What was chosen of the options of every question, right or wrong, and what guessing would get.

    `doubled`: questions among whose options a text stands twice.
    """

    chosen: tuple[int, ...]
    correct: NDArray[np.float64]
    chance: float
    doubled: int

    @property
    def accuracy(self) -> float:
        """The share of questions whose right option was chosen."""
        return float(self.correct.mean())


def multiple_choice(
    questions: Array,
    pool: Array,
    options: Sequence[Sequence[int]],
    right: Sequence[int],
    *,
    similarity: str = "cosine",
) -> Choices:
    """Choose the option most similar to its question; the first of equals.

    >>> pool = np.eye(3, dtype=np.float32)
    >>> found = multiple_choice(np.array([[0.2, 0.9, 0.1]], np.float32), pool, [[0, 2, 1]], [2])
    >>> found.chosen, found.accuracy, round(found.chance, 2)
    ((2,), 1.0, 0.33)

    questions, pool: vectors. options: of every question, rows of the pool. right: place of the right option, from 0.
    Raises RequestError naming questions without options and right options that are not there.
    """
    problems = Problems()
    if not len(questions) == len(options) == len(right):
        problems.add(f"{len(questions)} questions, {len(options)} lists of options, {len(right)} answers")
    for number, (own, answer) in enumerate(zip(options, right, strict=False)):
        if not own:
            problems.add(f"question {number} has no options")
        elif not 0 <= answer < len(own):
            problems.add(f"question {number}: the right option is {answer}, there are {len(own)}")
    problems.raise_if_any(RequestError, "multiple choice")
    if similarity == "cosine":
        questions, pool = normalised(questions), normalised(pool)
    chosen = tuple(int((pool[list(own)] @ question).argmax()) for question, own in zip(questions, options, strict=True))
    correct = np.array([a == b for a, b in zip(chosen, right, strict=True)], np.float64)
    doubled = sum(len(set(own)) < len(own) for own in options)
    return Choices(chosen, correct, float(np.mean([1 / len(own) for own in options])), doubled)


def pooled(
    questions: Array, pool: Array, right: Sequence[int], *, similarity: str = "cosine"
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the rank (from 1) of every question's right answer in the pool, nDCG@10 and recall@10.

    >>> pooled(np.array([[0.2, 0.9, 0.1]], np.float32), np.eye(3, dtype=np.float32), [0])[0]
    array([2])

    right: rows of the pool; one relevant document a question. Equal scores: the lower row first.
    """
    if similarity == "cosine":
        questions, pool = normalised(questions), normalised(pool)
    scores = questions @ pool.T
    own = scores[np.arange(len(right)), list(right)][:, None]
    before = np.arange(len(pool))[None] < np.asarray(right)[:, None]
    ranks = 1 + (scores > own).sum(axis=1) + ((scores == own) & before).sum(axis=1)
    within = ranks <= 10
    return ranks, np.where(within, 1 / np.log2(ranks + 1), 0.0), within.astype(np.float64)


def instructed(instruction: str, query: str, template: str | None = None) -> str:
    """Return a query with its instruction before it.

    >>> instructed("Retrieve the answer.", "Why?"), instructed("Retrieve.", "Why?", "Instruct: {i}\\nQuery: {q}")
    ('Retrieve the answer. Why?', 'Instruct: Retrieve.\\nQuery: Why?')

    template: of encoders that were trained with instructions; documents never get one.
    """
    return f"{instruction} {query}" if template is None else template.format(i=instruction, q=query)
