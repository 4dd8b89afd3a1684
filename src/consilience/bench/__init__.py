"""Measure models on a suite: base, experts, simple baselines, candidates and an oracle, with paired intervals."""

from __future__ import annotations

from consilience.bench.bootstrap import Difference, paired_bootstrap
from consilience.bench.compare import evaluate
from consilience.bench.embeddings import Encoder
from consilience.bench.evaluation import Evaluation, Row

__all__ = ["Difference", "Encoder", "Evaluation", "Row", "evaluate", "paired_bootstrap"]
