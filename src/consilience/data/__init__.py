"""Datasets with roles, evaluation sets under fixed caps, metrics, and the one place that refuses leakage."""

from __future__ import annotations

from consilience.data.graded import GradedData, GradedPairs
from consilience.data.instructions import InstructionData
from consilience.data.labelled import LabelledData, LabelledTexts
from consilience.data.language import LanguageData
from consilience.data.metrics import Metric, measure, ndcg_at, rank
from consilience.data.pairs import TrainingPairs
from consilience.data.reserved import ReservedQueries
from consilience.data.retrieval import Documents, Queries, RetrievalData, View
from consilience.data.sampling import EvaluationSet, evaluation_set
from consilience.data.suite import Suite

__all__ = [
    "Documents",
    "EvaluationSet",
    "GradedData",
    "GradedPairs",
    "InstructionData",
    "LabelledData",
    "LabelledTexts",
    "LanguageData",
    "Metric",
    "Queries",
    "ReservedQueries",
    "RetrievalData",
    "Suite",
    "TrainingPairs",
    "View",
    "evaluation_set",
    "measure",
    "ndcg_at",
    "rank",
]
