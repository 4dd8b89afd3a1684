"""How well a score tells pairs that belong together from pairs that do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from consilience.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["best_f1", "roc_auc", "wins"]


def wins(positive: ArrayLike, negative: ArrayLike) -> NDArray[np.float64]:
    """Return for each positive the share of negatives that score lower, half for equal ones; the mean is the ROC-AUC.

    >>> wins([0.9, 0.2], [0.1, 0.2, 0.8, 0.7]).tolist()
    [1.0, 0.375]

    One value per positive, so that models can be compared pair by pair. Raises DataError for none of either, and for
    scores that are not finite.
    """
    high, low = _scores(positive, "positive"), np.sort(_scores(negative, "negative"))
    below, upto = np.searchsorted(low, high, "left"), np.searchsorted(low, high, "right")
    return np.asarray((below + upto) / (2 * len(low)), np.float64)


def roc_auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative.

    >>> roc_auc([0.9, 0.8], [0.1, 0.85])
    0.75
    """
    return float(wins(positive, negative).mean())


def best_f1(positive: ArrayLike, negative: ArrayLike) -> tuple[float, float]:
    """Return the best F1 over all thresholds and the lowest score that counts as positive there.

    >>> best_f1([0.9, 0.8, 0.3], [0.5, 0.1])
    (0.8571428571428571, 0.3)

    Chosen on the scores that it is measured on, as papers do (F1max). Raises DataError as `wins`.
    """
    from sklearn.metrics import precision_recall_curve  # type: ignore[import-untyped]

    high, low = _scores(positive, "positive"), _scores(negative, "negative")
    truth = np.concatenate([np.ones(len(high)), np.zeros(len(low))])
    precision, recall, thresholds = precision_recall_curve(truth, np.concatenate([high, low]))
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)[:-1]
    best = int(f1.argmax())
    return float(f1[best]), float(thresholds[best])


def _scores(values: ArrayLike, name: str) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64).reshape(-1)
    if not len(found) or not np.isfinite(found).all():
        what = "NaN or infinity among them" if len(found) else "there are none"
        raise DataError(f"scores of {name} pairs: {what}")
    return found
