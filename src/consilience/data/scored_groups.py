"""Queries with several documents each and a teacher's scores of them: what distillation learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.core.hashing import fingerprint
from consilience.core.randomness import stream_key
from consilience.data.pairs import TrainingPairs
from consilience.errors import DataError, Problems

__all__ = ["ScoredGroups", "Teacher", "score_groups"]

Teacher = Callable[[Sequence[str], Sequence[str]], ArrayLike]
"""Queries and documents -> the score of every document for every query, (queries, documents)."""

_AT_ONCE = 256  # queries that the teacher is shown


@dataclass(frozen=True)
class ScoredGroups:
    """Queries, n documents of each, and how well a teacher thinks they answer.

    >>> groups = ScoredGroups("tiny", ("q",), ("a", "b", "c"), [[2, 0]], [[0.9, 0.1]])
    >>> groups.documents.shape, groups.scores.dtype
    ((1, 2), dtype('float32'))

    documents: (queries, n) positions in `texts`, the first of each relevant; scores: (queries, n), finite, any scale.
    Raises DataError with all problems.
    """

    name: str
    queries: tuple[str, ...]
    texts: tuple[str, ...] = field(repr=False)
    documents: NDArray[np.int64] = field(repr=False)
    scores: NDArray[np.float32] = field(repr=False)

    def __init__(
        self, name: str, queries: Sequence[str], texts: Sequence[str], documents: ArrayLike, scores: ArrayLike
    ) -> None:
        set_field = object.__setattr__
        set_field(self, "name", name)
        set_field(self, "queries", tuple(queries))
        set_field(self, "texts", tuple(texts))
        problems = Problems()
        try:
            set_field(self, "documents", np.array(documents, np.int64))
            set_field(self, "scores", np.array(scores, np.float32))
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: documents and scores are tables of numbers ({error})") from error
        shape = self.documents.shape
        if not self.queries or len(shape) != 2 or shape[0] != len(self.queries):
            problems.add(f"{len(self.queries)} queries, documents {list(shape)}; give (queries, n), one query at least")
        elif shape[1] < 2:
            problems.add("one document for each query; there is something to learn from 2 on")
        elif self.documents.min() < 0 or self.documents.max() >= len(self.texts):
            problems.add(f"documents are positions in the {len(self.texts)} texts, from 0")
        if self.scores.shape != shape:
            problems.add(f"scores {list(self.scores.shape)}, documents {list(shape)}; a score for each")
        elif not np.isfinite(self.scores).all():
            bad = np.flatnonzero(~np.isfinite(self.scores).all(axis=-1))[:5].tolist()
            problems.add(f"scores of the queries {bad} are not finite")
        problems.raise_if_any(DataError, f"groups {name}")

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def content_hash(self) -> str:
        """The identity of the groups, for records."""
        return fingerprint([self.queries, self.texts, self.documents.tolist(), self.scores.tolist()])


def score_groups(
    pairs: TrainingPairs, teacher: Teacher, *, documents: int = 8, hard: float = 0.5, seed: int = 0
) -> ScoredGroups:
    """Return a group for every training query: a relevant document, what the teacher likes best, and others.

    >>> from consilience.data import Documents, TrainingPairs
    >>> texts = Documents(("d1", "d2", "d3"), ("red cat", "blue cat", "tax"))
    >>> pairs = TrainingPairs("tiny", ("red",), ((0,),), ((),), texts)
    >>> def shared(queries, texts):
    ...     return [[len(set(query.split()) & set(text.split())) for text in texts] for query in queries]
    >>> score_groups(pairs, shared, documents=2).scores.tolist()
    [[1.0, 0.0]]

    documents: n of a group, the relevant one first. hard: the share of the rest that has the teacher's highest scores
    of those not judged relevant; the others are drawn by `seed`. Raises DataError where there are fewer documents.
    """
    texts, count = pairs.documents.texts, documents - 1
    least = len(texts) - max((len(row) for row in pairs.positives), default=0)
    if count < 1 or count > least:
        raise DataError(f"groups of {documents} documents; 2 to {least + 1} can be made of {pairs.name}")
    chosen, scores = [], []
    for start in range(0, len(pairs), _AT_ONCE):
        found = np.asarray(teacher(pairs.queries[start : start + _AT_ONCE], texts), np.float32)
        for place, own in enumerate(found):
            row = start + place
            random = np.random.Generator(np.random.Philox(stream_key(seed, "groups", pairs.name, str(row))))
            others = np.setdiff1d(np.arange(len(texts)), pairs.positives[row])
            best = others[np.argsort(-own[others], kind="stable")][: round(hard * count)]
            rest = random.permutation(np.setdiff1d(others, best))[: count - len(best)]
            group = np.concatenate([pairs.positives[row][:1], best, rest]).astype(np.int64)
            chosen.append(group)
            scores.append(own[group])
    return ScoredGroups(pairs.name, pairs.queries, texts, np.stack(chosen), np.stack(scores))
