"""TALL-masks and Consensus Merging: the sum of task vectors still holds each task, and shared weights merge better.

Wang et al. 2024, Localizing Task Information for Improved Model Merging and Compression, arXiv 2405.07813; here on
text classifiers fine-tuned from one small encoder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from consilience.bench.experiments import Options, Scores, State, Workbench, run
from consilience.bench.experiments.text import SMALL, TextFamily
from consilience.bundles.creation import create_bundle

SEEDS = (0, 1, 2)
TASKS = ("trec6", "banking77", "newsgroups14", "ag_news", "subjectivity", "sst2")
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)  # lambda_t, chosen per task on dev, the first maximum
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # for both methods, on dev
K = 2
KEPT = 0.97  # of each expert's accuracy, by the masked model; the unmasked sum keeps less
LOSS = -0.005  # consensus is not below plain task arithmetic by more than half a point
BYTES, PACKED = 0.60, 4  # share of the bytes of so many experts that base, vector and masks take


def thresholds(bench: Workbench) -> dict[str, float]:
    """Choose the threshold of each task by the accuracy of its reconstructed model on dev."""
    found = {}
    for task in bench.tasks:

        def masked(tall_mask_lambda: float, task: str = task) -> State:
            return bench.merge("tall_mask", task=task, tall_mask_lambda=tall_mask_lambda)

        found[task] = bench.tune(masked, {"tall_mask_lambda": THRESHOLDS}, on=[task]).parameters["tall_mask_lambda"]
    return found


def shuffled_mask(bench: Workbench, merged: State, alpha: float) -> State:
    """Keep as many weights of every tensor as `merged` does, but random ones."""
    total = bench.merge("tall_mask")
    draw = torch.Generator().manual_seed(bench.seed)
    state = {}
    for name, base in bench.base.items():
        kept = (merged[name] != base).flatten()
        mask = kept[torch.randperm(len(kept), generator=draw)].view(base.shape)
        state[name] = base + alpha * (total[name] - base) * mask
    return state


def measure(bench: Workbench, rows: list[list[Any]]) -> dict[str, Scores]:
    chosen = thresholds(bench)
    own = bench.expert_scores()
    masked = {task: bench.merge("tall_mask", task=task, tall_mask_lambda=chosen) for task in bench.tasks}
    recovered = Scores({task: bench.scores(masked[task], tasks=[task]).by_example[task] for task in bench.tasks})
    added = bench.scores(bench.merge("tall_mask"))
    base = bench.base_scores()
    for task in bench.tasks:
        values = [scores.by_task[task] for scores in (base, own, recovered, added)]
        rows.append([bench.seed, task, chosen[task], *values, values[2] / values[1], values[3] / values[1]])
    plain = bench.tune("task_arithmetic", {"lambda_": ALPHAS})
    consensus = bench.tune("consensus", {"alpha": ALPHAS}, k=K, tall_mask_lambda=chosen)
    alpha = consensus.parameters["alpha"]
    facts: dict[str, dict[str, int]] = {}
    bench.merge("consensus", alpha=alpha, k=K, tall_mask_lambda=chosen, facts=facts)
    counts = {kind: sum(part[kind] for part in facts.values()) for kind in ("catastrophic", "selfish", "general")}
    share = {kind: count / sum(counts.values()) for kind, count in counts.items()}
    return {
        "base": base,
        "experts": own,
        "masked": recovered,
        "sum, scale 1": added,
        f"average|1/{len(bench.tasks)}": bench.scores(bench.merge("linear")),
        f"task arithmetic|{plain.parameters['lambda_']}": bench.scores(plain.state),
        f"consensus k={K}|{alpha}, {share['general']:.0%} general, {share['selfish']:.0%} selfish": bench.scores(
            consensus.state
        ),
        f"random mask|{alpha}": bench.scores(shuffled_mask(bench, consensus.state, alpha)),
    }


def main(options: Options) -> None:
    report = options.report("consensus-merging", "TALL-masks and Consensus Merging", source="arXiv 2405.07813")
    family = TextFamily(cache=options.cache, **options.pick({}, SMALL))
    benches = options.workbenches(family, tasks=options.pick(TASKS, TASKS[:PACKED]))
    rows: list[list[Any]] = []
    found: dict[str, list[Scores]] = {}
    table: list[list[object]] = []
    for bench in benches:
        for label, scores in measure(bench, rows).items():
            name, _, setting = label.partition("|")
            found.setdefault(name, []).append(scores)
            table.append([bench.seed, name, setting, scores.mean, scores.n])
    columns = ["seed", "task", "lambda_t", "base", "expert", "masked", "sum at scale 1", "masked/expert", "sum/expert"]
    report.table(rows, columns, "One vector for all tasks: test accuracy with and without the task's mask")
    report.table(table, ["seed", "model", "alpha and weights", "mean test accuracy", "n"], "Merged models")

    least, unmasked = min(row[-2] for row in rows), min(row[-1] for row in rows)
    ratios = [[row[-2] for row in rows if row[1] == task] for task in benches[0].tasks]
    mean = min(sum(values) / len(values) for values in ratios)
    detail = (
        f"the least of {len(rows)} models keeps {least:.4f}; the least of the tasks' means over seeds is {mean:.4f}"
    )
    report.claim(f"masked models keep {KEPT:.0%} of every expert's accuracy", least >= KEPT, detail)
    report.claim("the unmasked sum at scale 1 does not", unmasked < KEPT, f"the least is {unmasked:.4f}")
    report.difference("masked models are above the unmasked sum", found["masked"], found["sum, scale 1"])
    consensus, plain = found[f"consensus k={K}"], found["task arithmetic"]
    text = "consensus is not below task arithmetic by more than half a point, same grid and dev data"
    report.difference(text, consensus, plain, margin=LOSS)
    report.difference("consensus is above task arithmetic, mean of the seeds", consensus, plain, decide="mean")
    report.difference("consensus is above a random mask of the same density", consensus, found["random mask"])

    bench = benches[0]
    experts = {task: bench.experts[task] for task in bench.tasks[:PACKED]}
    with tempfile.TemporaryDirectory() as folder:
        bundle = create_bundle(Path(folder) / "bundle", bench.base, experts, residual="masks")
        own_bytes = sum(value.nbytes for state in experts.values() for value in state.values())
        size = bundle.sizes["files"]  # the base is in it
        restored = {task: bundle.state(task) for task in experts}
    exact = all(
        torch.equal(value, restored[task][name])
        for task in experts
        for name, value in bench.merge("tall_mask", tasks=list(experts), task=task).items()
    )
    detail = f"{size:,} bytes with the base, {own_bytes:,} of the {PACKED} experts: {size / own_bytes:.1%}"
    report.claim(f"base, vector and masks take less than {BYTES:.0%} of the experts", size / own_bytes < BYTES, detail)
    report.claim("models of the tasks are the same bits after a reload", exact, f"{PACKED} tasks")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
