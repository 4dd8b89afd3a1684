"""nDCG@10 on a sample of the dev split: the number by which checkpoints are compared while training."""

from __future__ import annotations

import numpy as np

from consilience.data import EvaluationSet
from consilience.data.metrics import ndcg_at
from consilience.models.encoder import DenseEncoder

__all__ = ["mean_ndcg"]


def mean_ndcg(encoder: DenseEncoder, sample: EvaluationSet) -> float:
    """Return the mean nDCG@10 x 100 over the sample's queries, documents ranked by cosine similarity."""
    vectors = encoder.encode([*sample.queries, *sample.documents])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    scores = vectors[: len(sample.queries)] @ vectors[len(sample.queries) :].T
    return round(100.0 * float(ndcg_at(scores, sample.qrels, k=10).mean()), 3)
