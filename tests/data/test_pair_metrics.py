"""ROC-AUC as a mean of wins, and the best F1."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from consilience.data.pair_metrics import best_f1, roc_auc, wins
from consilience.errors import DataError


def test_roc_auc_and_f1_are_those_of_scikit_learn_with_ties():
    random = np.random.default_rng(0)
    positive, negative = random.integers(3, 12, 80) / 10, random.integers(0, 9, 50) / 10
    truth, scores = np.r_[np.ones(80), np.zeros(50)], np.r_[positive, negative]
    assert roc_auc(positive, negative) == pytest.approx(roc_auc_score(truth, scores))
    assert wins(positive, negative).shape == (80,)
    best, threshold = best_f1(positive, negative)
    every = [f1_score(truth, scores >= value) for value in np.unique(scores)]
    assert best == pytest.approx(max(every)) and f1_score(truth, scores >= threshold) == pytest.approx(best)


@pytest.mark.parametrize(("positive", "negative"), [([], [1.0]), ([1.0], []), ([float("nan")], [1.0])])
def test_nothing_to_compare_is_an_error(positive, negative):
    with pytest.raises(DataError, match=r"scores of (positive|negative) pairs"):
        wins(positive, negative)
