from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from consilience.errors import DataError
from consilience.training.loss import grouped_infonce
from consilience.training.similarity_loss import (
    alike_infonce,
    pearson_loss,
    preference_loss,
    rank_divergence,
    similarity_loss,
)

LOSSES = [pearson_loss, preference_loss, rank_divergence]


def with_gradient(loss: Callable[[Tensor, Tensor], Tensor], similarity: list[float], scores: list[float]) -> Tensor:
    given = torch.tensor(similarity, requires_grad=True)
    value = loss(given, torch.tensor(scores))
    (gradient,) = torch.autograd.grad(value, given)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    return torch.cat([value.detach().view(1), gradient])


def test_preference_and_rank_losses_by_hand() -> None:
    similarity, scores = [0.2, 0.5, -0.1, 0.5], [0.9, 0.3, 0.3, 0.0]
    terms = []
    for k, gold in enumerate(scores):
        lower = [j for j, other in enumerate(scores) if gold - other > 1e-8]
        if lower:
            widest = max(gold - scores[j] for j in lower)
            own = math.exp(widest * similarity[k] / 0.05)
            others = sum(math.exp((gold - scores[j]) * similarity[j] / 0.05) for j in lower)
            terms.append(-math.log(own / (own + others)))
    found = preference_loss(torch.tensor(similarity), torch.tensor(scores)).item()
    assert math.isclose(found, sum(terms) / len(terms), rel_tol=1e-5)
    order = np.exp(np.array([3.0, 1.5, 1.5, 0.0]) / 3 / 0.05)  # equal scores share their mean rank
    target, predicted = order / order.sum(), np.exp(np.array(similarity) / 0.05)
    predicted /= predicted.sum()
    divergence = float((target * np.log(target / predicted)).sum()) / 4
    found = rank_divergence(torch.tensor(similarity), torch.tensor(scores)).item()
    assert math.isclose(found, divergence, rel_tol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_to_learn_is_zero_and_finite(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert with_gradient(loss, [0.4], [0.7]).tolist() == [0.0, 0.0]
    equal = with_gradient(loss, [0.1, 0.4, 0.3], [0.6, 0.6, 0.6])
    if loss is not rank_divergence:  # whose target is then the uniform distribution
        assert equal.tolist() == [0.0] * 4


def test_equal_similarities_have_no_correlation_and_no_gradient() -> None:
    assert with_gradient(pearson_loss, [0.3, 0.3, 0.3], [0.0, 0.5, 1.0]).tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_placeholder_score_is_an_error(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(DataError, match=r"1 of 2 scores .* such as -1; a pair without a score"):
        loss(torch.tensor([0.1, 0.2]), torch.tensor([0.5, -1.0]))
    with pytest.raises(DataError, match=r"both are \(pairs,\)"):
        loss(torch.zeros(2), torch.zeros(3))


def test_without_alike_pairs_there_is_no_contrast() -> None:
    vectors = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = alike_infonce(vectors[0], vectors[1], torch.full((5,), 0.5))
    assert loss.item() == 0.0
    loss.backward()
    scores = torch.tensor([1.0, 0.5, 0.2, 1.0, 0.0])
    whole = similarity_loss(vectors[0], vectors[1], scores, (vectors[0], vectors[1]))
    without = similarity_loss(vectors[0], vectors[1], scores)
    assert math.isclose((whole - without).item(), alike_infonce(vectors[0], vectors[1], scores).item(), rel_tol=1e-5)


def test_groups_by_hand_and_other_slots_are_never_negatives() -> None:
    random = np.random.default_rng(0)
    queries, positives, negatives = (
        random.normal(size=(3, 6)),
        random.normal(size=(3, 2, 6)),
        random.normal(size=(3, 4, 6)),
    )
    left_out = np.zeros((2, 3, 15), bool)
    left_out[1, 0, 2] = left_out[0, 2, 7] = True

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    terms = []
    for slot in range(2):
        candidates = [*positives[:, slot], *negatives.reshape(12, 6)]
        for i in range(3):
            logits = {j: cosine(queries[i], c) / 0.5 for j, c in enumerate(candidates) if not left_out[slot, i, j]}
            terms.append(math.log(sum(map(math.exp, logits.values()))) - logits[i])
    given = [torch.from_numpy(array) for array in (queries, positives, negatives)]
    found = grouped_infonce(*given, temperature=0.5, left_out=torch.from_numpy(left_out))
    assert math.isclose(found.item(), float(np.mean(terms)), rel_tol=1e-9)
    moved = given[1].clone()
    moved[1:, 1] += 5.0  # the second slot of the others
    one = [given[0], given[1][:, :1], given[2]]
    assert torch.equal(grouped_infonce(*one), grouped_infonce(one[0], moved[:, :1], one[2]))
