"""Experiments on fine-tuned models: train or load experts, merge, tune on dev, measure on test, decide claims."""

from __future__ import annotations

from consilience.bench.experiments.claims import Claim, Report
from consilience.bench.experiments.cost import Cost, measure_cost
from consilience.bench.experiments.family import Family, State
from consilience.bench.experiments.run import Options, run
from consilience.bench.experiments.scores import Paired, Scores, compare
from consilience.bench.experiments.tune import Trial, Tuned
from consilience.bench.experiments.workbench import Workbench

__all__ = [
    "Claim",
    "Cost",
    "Family",
    "Options",
    "Paired",
    "Report",
    "Scores",
    "State",
    "Trial",
    "Tuned",
    "Workbench",
    "compare",
    "measure_cost",
    "run",
]
