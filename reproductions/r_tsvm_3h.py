"""Mix data or merge models: balancing usefulness, abstention and refusal by merging three preference experts.

Yang et al. 2025, Mix Data or Merge Models? Balancing the Helpfulness, Honesty, and Harmlessness of Large Language
Models via Model Merging, arXiv 2502.06876. R-TSVM is a reconstruction; methods, mixtures and datasets are our choice.
"""

from __future__ import annotations

import sys
from itertools import product

import numpy as np

from consilience.bench.experiments import Options, Scores, Workbench, compare, run
from consilience.bench.experiments.alignment import MIXTURES, Alignment

SEEDS = (0, 1, 2, 3, 4)
POINT = 0.01
TASKS = Alignment.tasks
WEIGHTS = {"weight": [dict(zip(TASKS, w, strict=True)) for w in product((0.2, 0.5, 0.8), (0.4, 0.7, 1.0), (0.2, 0.6))]}
ALPHA = {"alpha": [0.6, 0.8, 1.0, 1.25, 1.5, 2.0]}
METHODS = {  # name: method, fixed parameters, grid (chosen by the balance on dev)
    "average": ("task_arithmetic", {"weight": 1 / 3}, {}),
    "task arithmetic": ("task_arithmetic", {}, WEIGHTS),
    "TIES": ("ties", {"density": 0.5}, WEIGHTS),
    "DARE": ("dare_linear", {"density": 0.5}, WEIGHTS),
    "DARE-TIES": ("dare_ties", {"density": 0.5}, WEIGHTS),
    "DELLA": ("della", {"density": 0.5}, WEIGHTS),
    "Breadcrumbs": ("breadcrumbs", {}, WEIGHTS),
    "Model Stock": ("model_stock", {}, {}),
    "TSV-M": ("tsv", {}, ALPHA),
    "Iso-C": ("iso_c", {}, ALPHA),
    "R-TSVM": ("r_tsvm", {}, ALPHA),
}
CONFLICT_SCALE = 0.5  # of the task vectors whose sum the conflict matrix looks at
SMALL = {"base_steps": 5, "expert_steps": 3, "size": 10}


def balance(scores: Scores) -> float:
    return min(scores.by_task.values())


def conflicts(bench: Workbench) -> np.ndarray:
    """Entry (i, j): change of dimension j when expert i is added to the merge of the others."""

    def merged(tasks: list[str]) -> np.ndarray:
        state = bench.merge("task_arithmetic", tasks=tasks, lambda_=CONFLICT_SCALE)
        return np.array([bench.scores(state).by_task[task] for task in TASKS])

    whole = merged(list(TASKS))
    return np.array([whole - merged([other for other in TASKS if other != task]) for task in TASKS])


def main(options: Options) -> None:
    report = options.report("r-tsvm-3h", "Mix data or merge models", source="arXiv 2502.06876")
    family = Alignment(**options.pick({}, SMALL))
    kinds = options.pick(MIXTURES, MIXTURES[:1])
    test: dict[str, list[Scores]] = {}
    dev: dict[str, list[float]] = {}
    trials = {}
    matrices = []
    for bench in options.workbenches(family):
        states = {"base": bench.base} | {f"expert {task}": state for task, state in bench.experts.items()}
        mixed = {f"mixture, {kind}": family.mixture(kind, bench.seed) for kind in kinds}
        merged = {}
        for name, (method, fixed, grid) in METHODS.items():
            small = {key: values[:1] for key, values in grid.items()}
            tuned = bench.tune(method, options.pick(grid, small), objective=balance, **fixed)
            merged[name], trials[name] = tuned.state, len(tuned.trials)
        for name, state in {**states, **mixed, **merged}.items():
            test.setdefault(name, []).append(bench.scores(state))
            dev.setdefault(name, []).append(balance(bench.scores(state, split="dev")))
        matrices.append(conflicts(bench))

    low = {name: float(np.mean([balance(scores) for scores in found])) for name, found in test.items()}
    numbers = {name: np.array([list(scores.by_task.values()) for scores in found]) for name, found in test.items()}
    rows = []
    for name, found in numbers.items():
        gain = ((found - numbers["base"]) / numbers["base"].clip(min=1e-9)).mean()
        more = [low[name], gain, float(np.mean(dev[name])), trials.get(name)]
        rows.append([name, *found.mean(axis=0), compare(test[name]), *more])
    columns = ["model", *TASKS, "mean [95 %]", "balance", "gain", "balance on dev", "tried on dev"]
    sizes = ", ".join(f"{task} n={len(held)}" for task, held in test["base"][0].by_example.items())
    caption = (
        f"Test ({sizes}), mean of {len(options.seeds)} seeds; balance: the lowest dimension of each seed; gain: mean "
    )
    report.table(rows, columns, caption + "of (score - base) / base")
    names = {task: [held.name for held in family.data.tests["test"][task]] for task in TASKS}
    report.note("Datasets: " + "; ".join(f"{task}: {', '.join(held)}" for task, held in names.items()) + ".")
    report.note(
        "Preferences of different dimensions do not contradict each other on one prompt, so mixing data is easy."
    )
    added = [[f"+ {task}", *map(float, row)] for task, row in zip(TASKS, np.mean(matrices, axis=0), strict=True)]
    caption = (
        f"Conflicts on test: what adding an expert to the merge of the others changes ({CONFLICT_SCALE} x the sum)"
    )
    report.table(added, ["expert added", *TASKS], caption)

    merge = max(METHODS, key=lambda name: float(np.mean(dev[name])))
    mixture = max((f"mixture, {kind}" for kind in kinds), key=lambda name: float(np.mean(dev[name])))
    apart = [balance(a) - balance(b) for a, b in zip(test[merge], test[mixture], strict=True)]
    detail = f"{merge} {low[merge]:.4f}, {mixture} {low[mixture]:.4f}; by seed "
    detail += ", ".join(f"{value:+.4f}" for value in apart)
    text = "the best merge's balance (both chosen on dev) is at least the best mixture's - 1 point"
    report.claim(text, float(np.mean(apart)) >= -POINT, detail)
    ours, plain = low["R-TSVM"], low["TSV-M"]
    better = "R-TSVM" if ours > plain else "TSV-M" if plain > ours else "neither"
    detail = f"balance {ours:.4f} against {plain:.4f}: {better} is better"
    report.claim("R-TSVM's balance is within 1 point of TSV-M's, or better", ours >= plain - POINT, detail)
    spread = max(low[name] for name in METHODS) - min(low[name] for name in METHODS)
    report.claim("the methods differ: a conflict was created", spread > POINT, f"balances differ by {spread:.4f}")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
