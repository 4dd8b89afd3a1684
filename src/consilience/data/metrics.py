"""Retrieval metrics per query (stable ranking in NumPy, the numbers from ir-measures), and rank correlation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import DataError, MissingExtraError, WorkError, did_you_mean

__all__ = ["Metric", "measure", "ndcg_at", "rank", "spearman"]

_NAMES = {
    "ndcg": "nDCG",
    "recall": "R",
    "r": "R",
    "mrr": "RR",
    "rr": "RR",
    "precision": "P",
    "p": "P",
    "map": "AP",
    "ap": "AP",
}
_SHOWN = {"nDCG": "nDCG", "R": "recall", "RR": "MRR", "P": "precision", "AP": "MAP"}


@dataclass(frozen=True)
class Metric:
    """A metric and its cutoff, for example nDCG@10, recall@100, MRR@10, precision@1 or MAP@100.

    >>> Metric.parse("ndcg@10"), str(Metric.parse("Recall@100"))
    (Metric(name='nDCG', cutoff=10), 'recall@100')

    nDCG: gain = score, discount log2(rank + 1), ideal over all judgements. Values are between 0 and 1.
    """

    name: str
    cutoff: int

    @staticmethod
    def parse(text: str) -> Metric:
        """Read a metric as people write it; raises DataError for unknown ones."""
        match = re.fullmatch(r"\s*([A-Za-z]+)@(\d+)\s*", text)
        if match is None or int(match[2]) < 1:
            raise DataError(f"metric {text!r}: write a name and a cutoff, such as nDCG@10, recall@100 or MRR@10")
        if match[1].lower() not in _NAMES:
            raise DataError(f"metric {text!r} is unknown{did_you_mean(match[1].lower(), _NAMES)}")
        return Metric(_NAMES[match[1].lower()], int(match[2]))

    def __str__(self) -> str:
        return f"{_SHOWN[self.name]}@{self.cutoff}"


def rank(scores: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Return the positions of the `k` best documents of every query, best first; equal scores keep document order.

    >>> rank(np.array([[0.2, 0.9, 0.9, 0.1]]), 3)
    array([[1, 2, 0]])

    `scores` is (queries, documents); the result is (queries, min(k, documents)). Raises WorkError for NaN.
    """
    count, documents = scores.shape
    if np.isnan(scores).any():
        row = int(np.flatnonzero(np.isnan(scores).any(axis=1))[0])
        raise WorkError(f"the scores of query {row} are not numbers (NaN); check the vectors of the model")
    k = min(k, documents)
    best = np.empty((count, k), np.int64)
    if k == 0:
        return best
    thresholds = np.partition(scores, documents - k, axis=1)[:, documents - k]
    for row in range(count):
        candidates = np.flatnonzero(scores[row] >= thresholds[row])
        order = np.argsort(-scores[row, candidates], kind="stable")[:k]
        best[row] = candidates[order]
    return best


def measure(
    metrics: Sequence[Metric], ranking: NDArray[np.int64], qrels: Sequence[Mapping[int, float]]
) -> dict[Metric, NDArray[np.float64]]:
    """Return every metric for every query of a ranking.

    >>> metric = Metric.parse("MRR@10")
    >>> measure([metric], np.array([[4, 2], [0, 1]]), [{2: 1}, {0: 1}])[metric]
    array([0.5, 1. ])

    `ranking` (queries, depth) holds document positions, best first, as `rank` returns them, at least as deep as the
    cutoffs (or all documents); `qrels[i]` maps positions to whole scores. A query with nothing relevant gets 0.
    """
    try:
        import ir_measures
    except ImportError:
        raise MissingExtraError("ir_measures", "bench") from None
    if len(ranking) != len(qrels):
        raise DataError(f"{len(ranking)} rankings for the judgements of {len(qrels)} queries; they must be as many")
    asked = {ir_measures.parse_measure(f"{metric.name}@{metric.cutoff}"): metric for metric in metrics}
    values = {metric: np.zeros(len(qrels)) for metric in metrics}
    # ir-measures breaks ties by document id; scores made from ranks leave it none.
    run = {
        str(index): {str(document): float(-place) for place, document in enumerate(row)}
        for index, row in enumerate(ranking.tolist())
    }
    truth = {
        str(index): {str(document): int(score) for document, score in judged.items()}
        for index, judged in enumerate(qrels)
        if judged
    }
    if truth and ranking.shape[1]:
        for result in ir_measures.iter_calc(list(asked), truth, run):
            values[asked[result.measure]][int(result.query_id)] = result.value
    return values


def ndcg_at(scores: NDArray[np.floating], qrels: Sequence[Mapping[int, float]], k: int = 10) -> NDArray[np.float64]:
    """Return nDCG@k of every query.

    >>> ndcg_at(np.array([[0.1, 0.3, 0.2]]), [{2: 1}]).round(4)
    array([0.6309])

    `scores` is (queries, documents), higher is better, equal scores keep document order; `qrels[i]` maps document
    positions to scores (gain = score). Values are between 0 and 1.
    """
    metric = Metric("nDCG", k)
    return measure([metric], rank(scores, k), qrels)[metric]


def spearman(predicted: ArrayLike, scores: ArrayLike) -> float:
    """Return Spearman's rank correlation of predicted similarities and gold scores, from -1 to 1.

    >>> spearman([0.1, 0.4, 0.3], [0, 5, 2])
    1.0

    Equal values share their mean rank. 0 where all predictions are equal: they order nothing. Raises DataError for
    fewer than two pairs, for scores that are all equal, and for values that are not finite.
    """
    try:
        from scipy.stats import spearmanr
    except ImportError:
        raise MissingExtraError("scipy", "torch") from None
    left, right = (np.asarray(values, np.float64).reshape(-1) for values in (predicted, scores))
    if len(left) != len(right) or len(left) < 2:
        raise DataError(f"{len(left)} predictions for {len(right)} scores; a correlation takes as many, at least two")
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise DataError("a rank correlation of values with NaN or infinity among them; check the model's vectors")
    if (right == right[0]).all():
        raise DataError(f"all {len(right)} scores are {right[0]:g}; nothing can correlate with them")
    return 0.0 if (left == left[0]).all() else float(spearmanr(left, right).statistic)
