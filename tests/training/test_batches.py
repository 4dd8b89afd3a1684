from __future__ import annotations

import numpy as np
import pytest

from consilience.data import Documents, ReservedQueries, RetrievalData, TrainingPairs
from consilience.errors import DataError
from consilience.training.batches import Batches
from tests.training.toy import toy_data


def pairs_of(data: RetrievalData) -> TrainingPairs:
    return data.training_pairs(reserved=ReservedQueries.empty())


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    batches = Batches(pairs_of(toy_data()), size=16, seed=3)
    epochs = [np.concatenate([batches.at(epoch * 7 + step) for step in range(7)]) for epoch in range(2)]
    for epoch in epochs:
        assert len({tuple(pair) for pair in epoch.tolist()}) == 7 * 16
    assert not np.array_equal(*epochs)


def test_batches_are_a_function_of_seed_and_step() -> None:
    pairs = pairs_of(toy_data())
    first, again, other = (Batches(pairs, size=8, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.at(40), again.at(40))
    assert not np.array_equal(first.at(40), other.at(40))


def test_other_relevant_documents_of_the_batch_are_marked() -> None:
    documents = Documents(("d0", "d1", "d2"), ("x", "y", "z"))
    pairs = TrainingPairs("tiny", ("a", "b"), ((2, 0), (2,)), ((1,), ()), documents)
    batches = Batches(pairs, size=3, seed=0)
    assert batches.documents == ["x", "z"]  # y is relevant for nobody
    batch = np.array([[0, 0], [1, 1], [0, 1]])
    assert batches.relevant(batch).tolist() == [[True, True, True], [False, True, True], [True, True, True]]


def test_a_batch_larger_than_the_data_is_an_error() -> None:
    with pytest.raises(DataError, match="the batch is 500, but there are only 120 training pairs"):
        Batches(pairs_of(toy_data()), size=500, seed=0)
