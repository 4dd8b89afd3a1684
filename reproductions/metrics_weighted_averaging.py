"""Metrics-weighted averaging: checkpoints of one LoRA run, weighted by their training loss, beat the uniform average.

Parameter-Efficient Checkpoint Merging via Metrics-Weighted Averaging, 2025, arXiv 2504.18580. The method here is a
reconstruction (the paper's formula was not found); one epoch of a small language model on paragraphs of law.
"""

from __future__ import annotations

import sys

import numpy as np

from consilience.bench.experiments import Options, Scores, compare, run
from consilience.bench.experiments.adapter_run import AdapterRun
from consilience.bench.experiments.passages import Passages

SEEDS = (0, 1, 2)
CHECKPOINTS, EXAMPLES, BATCH = 8, 5120, 8  # one epoch of 640 steps, a checkpoint every 80
POWERS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the weights; chosen by dev loss
LORA = {"rank": 8, "alpha": 16, "learning_rate": 0.02, "schedule": "constant", "dtype": "float32"}
WORSE = 0.01  # share of the uniform average's loss that MWA may lose before the run counts as failed
SMALL = {"base_steps": 3, "question_steps": 2, "law_steps": 2, "hidden": 16, "size": 10}


def best_power(made: AdapterRun, metric: str) -> float:
    return max(POWERS, key=lambda p: made.merge_scores("mwa", split="dev", penalty_factor=p, metric=metric).mean)


def main(options: Options) -> None:
    report = options.report("metrics-weighted-averaging", "Averaging checkpoints", source="arXiv 2504.18580")
    family = Passages(**options.pick({}, SMALL))
    scores: dict[str, list[Scores]] = {}
    rows, chosen = [], []
    for bench in options.workbenches(family):
        data = family.law_data(options.pick(EXAMPLES, BATCH * CHECKPOINTS))
        made = AdapterRun(bench, data, checkpoints=CHECKPOINTS, batch=BATCH, **LORA)
        saved = made.record["checkpoints"]
        best = min(saved, key=lambda entry: entry["dev"])
        power, later = best_power(made, "loss"), best_power(made, "steps")
        found = {
            "base": bench.base_scores(tasks=["law"]),
            "last checkpoint": made.scores(made.folders[f"step-{saved[-1]['step']}"]),
            "best checkpoint (dev)": made.scores(made.folders[f"step-{best['step']}"]),
            "uniform average": made.merge_scores("mwa", penalty_factor=0.0),
            "MWA, loss": made.merge_scores("mwa", penalty_factor=power),
            "MWA, steps": made.merge_scores("mwa", penalty_factor=later, metric="steps"),
            "MWA, loss, p = 1": made.merge_scores("mwa", penalty_factor=1.0),
        }
        for name, value in found.items():
            scores.setdefault(name, []).append(value)
        chosen.append([bench.seed, power, later, best["step"]])
        rows += [[bench.seed, entry["step"], entry["loss"], entry["dev"]] for entry in saved]
    n = scores["base"][0].n
    uniform = scores["uniform average"]
    table = [
        [name, -compare(held).difference, *[-one.mean for one in held], compare(held, uniform)]
        for name, held in scores.items()
    ]
    seeds = [f"seed {row[0]}" for row in chosen]
    columns = ["adapter", "loss", *seeds, "better than uniform by"]
    report.table(table, columns, f"Test, loss per token, {n} paragraphs; 95 % intervals over paragraphs and seeds")
    report.table(chosen, ["seed", "p (loss)", "p (steps)", "best checkpoint"], "Chosen by dev loss")
    report.table(rows, ["seed", "step", "training loss (last 10 steps)", "dev loss"], "Checkpoints")

    mean = {name: -float(np.mean([one.mean for one in held])) for name, held in scores.items()}
    merged = mean["MWA, loss"]
    for other in ("uniform average", "last checkpoint"):
        detail = f"{merged:.4f} against {mean[other]:.4f}; better by {compare(scores['MWA, loss'], scores[other])}"
        report.claim(f"MWA by loss is no worse than the {other}, in the mean", merged <= mean[other], detail)
    share = merged / mean["uniform average"] - 1
    text = f"MWA by loss is not worse than the uniform average by more than {WORSE:.0%}"
    report.claim(text, share <= WORSE, f"{100 * share:+.2f} %")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
