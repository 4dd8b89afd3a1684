"""The number by which checkpoints are compared while training: nDCG@10, or Spearman's correlation, on dev."""

from __future__ import annotations

import numpy as np

from consilience.data import EvaluationSet
from consilience.data.graded import GradedPairs
from consilience.data.metrics import ndcg_at, spearman
from consilience.models.encoder import DenseEncoder

__all__ = ["mean_ndcg", "pair_correlation"]


def mean_ndcg(encoder: DenseEncoder, sample: EvaluationSet) -> float:
    """Return the mean nDCG@10 x 100 over the sample's queries, documents ranked by cosine similarity."""
    vectors = encoder.encode([*sample.queries, *sample.documents])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    scores = vectors[: len(sample.queries)] @ vectors[len(sample.queries) :].T
    return round(100.0 * float(ndcg_at(scores, sample.qrels, k=10).mean()), 3)


def pair_correlation(encoder: DenseEncoder, pairs: GradedPairs) -> float:
    """Return Spearman's rank correlation x 100 of cosine similarities with the scores of pairs."""
    vectors = encoder.encode([*pairs.first, *pairs.second]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    cosine = (vectors[: len(pairs)] * vectors[len(pairs) :]).sum(axis=1)
    return round(100.0 * spearman(cosine, pairs.scores), 3)
