from __future__ import annotations

import math

import numpy as np
import torch

from consilience.training.loss import in_batch_negatives


def by_hand(queries: np.ndarray, documents: np.ndarray, relevant: np.ndarray, scale: float) -> float:
    losses = []
    for i, query in enumerate(queries):
        logits = {
            j: scale * float(query @ document / np.linalg.norm(query) / np.linalg.norm(document))
            for j, document in enumerate(documents)
            if j == i or not relevant[i, j]
        }
        losses.append(math.log(sum(math.exp(value) for value in logits.values())) - logits[i])
    return float(np.mean(losses))


def test_loss_is_the_cross_entropy_over_unmasked_documents() -> None:
    random = np.random.default_rng(0)
    queries, documents = random.normal(size=(2, 5, 7))
    relevant = np.eye(5, dtype=bool)
    relevant[0, 3] = relevant[4, 1] = True
    found = in_batch_negatives(
        torch.from_numpy(queries), torch.from_numpy(documents), torch.from_numpy(relevant), scale=6.0
    )
    assert math.isclose(found.item(), by_hand(queries, documents, relevant, 6.0), rel_tol=1e-12)


def test_masked_documents_get_no_gradient_from_that_query() -> None:
    queries = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    documents = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    in_batch_negatives(queries, documents, torch.ones(2, 2, dtype=torch.bool)).backward()
    assert documents.grad is not None
    assert torch.equal(documents.grad, torch.zeros(2, 4))  # each query sees its own document alone: loss 0
