"""aTLAS: a learnt coefficient per task vector and tensor, on four views of digits with a perceptron.

Zhang et al. 2024, Knowledge Composition using Task Vectors with Learned Anisotropic Scaling (NeurIPS 2024): addition,
negation, few-shot transfer, a budget of task vectors per tensor, and partitions. Coefficients are learnt on the same
200 dev images per task on which the one coefficient of task arithmetic is chosen; test is only measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from consilience.bench.experiments import Options, Scores, Workbench, compare, run
from consilience.bench.experiments.images import DigitViews
from consilience.tuning.atlas import atlas

SEEDS = (0, 1, 2, 3, 4)
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # task arithmetic, on dev
NEGATIVE = (0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.7, -1.0, -1.5, -2.0)  # negation, on dev
STEPS, RATE = 300, 1e-2
GROUPS = 5  # coefficients per tensor and task vector, with partitions
SHOTS = 5  # images per class of a task without an expert
CONTROL = 0.95  # of the base's accuracy on the other tasks is to stay
SMALL = {"base_steps": 20, "expert_steps": 10}
ADDITION = 0.05  # above the best single coefficient
NEGATION, TRANSFER, PARTITIONS = 0.0, 0.0, 0.0  # below it on the forgotten task; above the base; above no partitions


def addition(bench: Workbench, steps: int) -> dict[str, Scores]:
    """Compose one model for all tasks in every way, and score it on test."""
    family = bench.family
    assert isinstance(family, DigitViews)
    models = {task: family.model(bench.base, task) for task in bench.tasks}
    labelled = {task: family.sets[task].examples("dev").pairs() for task in bench.tasks}
    settings: dict[str, Any] = {"steps": steps, "learning_rate": RATE, "seed": bench.seed}
    ways: dict[str, dict[str, Any]] = {
        "aTLAS": {},
        "aTLAS, one coefficient per expert": {"granularity": "model"},
        "aTLAS, matrices only": {"matrices": True},
        "aTLAS, partitions": {"groups": GROUPS},
        "aTLAS, budget 1 by gradient": {"budget": 1},
        "aTLAS, budget 1 at random": {"budget": 1, "choice": "random"},
    }
    found = {
        "base": bench.base_scores(),
        "experts": bench.expert_scores(),
        "average": bench.scores(bench.merge("linear")),
        "task arithmetic, tuned": bench.scores(bench.tune("task_arithmetic", {"lambda_": ALPHAS}).state),
    }
    for name, way in ways.items():
        learned = atlas(bench.base, bench.experts, models, labelled, **settings, **way)
        found[name] = bench.scores(learned.state())
    return found


def negation(bench: Workbench, task: str, steps: int) -> dict[str, Scores]:
    """Forget one task by its own task vector: with one coefficient, and with one per tensor."""
    family = bench.family
    assert isinstance(family, DigitViews)
    models = {name: family.model(bench.base, name) for name in bench.tasks}
    labelled = {name: family.sets[name].examples("dev").pairs() for name in bench.tasks}
    others = [name for name in bench.tasks if name != task]
    least = CONTROL * bench.base_scores(split="dev", tasks=others).mean
    vector = bench.task_vectors()[task]

    def shifted(scale: float) -> Any:
        return bench.shifted(vector, scale)

    def forgotten(scores: Scores) -> float:
        return 1 - scores.by_task[task] if scores.only(others).mean >= least else -1.0

    plain = bench.tune(shifted, {"scale": NEGATIVE}, on=bench.tasks, objective=forgotten)
    settings: dict[str, Any] = {"steps": steps, "learning_rate": RATE, "seed": bench.seed}
    experts = {task: bench.experts[task]}
    learned = atlas(bench.base, experts, models, labelled, validation=labelled, forget=[task], **settings)
    return {
        "base": bench.base_scores(),
        "one coefficient": bench.scores(plain.state),
        "aTLAS": bench.scores(learned.state()),
    }


def transfer(bench: Workbench, task: str, steps: int) -> dict[str, Scores]:
    """Compose the experts of the other tasks for a task of which there are a few images only."""
    family = bench.family
    assert isinstance(family, DigitViews)
    experts = {name: state for name, state in bench.experts.items() if name != task}
    few = {task: family.sets[task].view("train").shots(SHOTS, seed=bench.seed).pairs()}
    tuned = bench.tune("task_arithmetic", {"lambda_": (0.0, *ALPHAS)}, tasks=list(experts), on=[task])
    models = {task: family.model(bench.base, task)}
    learned = atlas(bench.base, experts, models, few, steps=steps, learning_rate=RATE, seed=bench.seed)
    states = {"base": bench.base, "task arithmetic, 200 images": tuned.state, "aTLAS": learned.state()}
    return {name: bench.scores(state, tasks=[task]) for name, state in states.items()}


def joined(parts: Sequence[Scores]) -> Scores:
    """Join the scores of runs that each measured one task."""
    return Scores({task: values for part in parts for task, values in part.by_example.items()})


def main(options: Options) -> None:
    report = options.report("atlas", "aTLAS", source="NeurIPS 2024")
    steps = options.pick(STEPS, 4)
    added: dict[str, list[Scores]] = {}
    target: dict[str, list[Scores]] = {}
    control: dict[str, list[Scores]] = {}
    moved: dict[str, list[Scores]] = {}
    for bench in options.workbenches(DigitViews("strong", **options.pick({}, SMALL))):
        for name, scores in addition(bench, steps).items():
            added.setdefault(name, []).append(scores)
        runs = {task: negation(bench, task, steps) for task in bench.tasks}
        few = [transfer(bench, task, steps) for task in bench.tasks]
        for name in ("base", "one coefficient", "aTLAS"):
            target.setdefault(name, []).append(joined([run[name].only([task]) for task, run in runs.items()]))
            rest = {f"{task}, {other}": run[name].by_example[other] for task, run in runs.items() for other in runs}
            kept = {pair: value for pair, value in rest.items() if len(set(pair.split(", "))) == 2}
            control.setdefault(name, []).append(Scores(kept))
        for name in few[0]:
            moved.setdefault(name, []).append(joined([run[name] for run in few]))
    columns = ["model", *[f"seed {seed}" for seed in options.seeds]]
    captions = ("Addition: mean of 4 tasks", "Negation: forgotten task", "Negation: other tasks", "Few-shot: new task")
    for caption, held in zip(captions, (added, target, control, moved), strict=True):
        rows = [[name, *[one.mean for one in found]] for name, found in held.items()]
        report.table(rows, columns, f"Test accuracy. {caption}")

    ours, tuned = added["aTLAS"], added["task arithmetic, tuned"]
    report.difference("addition: 5 points above tuned task arithmetic", ours, tuned, margin=ADDITION)
    text = "negation: the forgotten task is lower than with the best single coefficient"
    report.difference(text, target["one coefficient"], target["aTLAS"], margin=NEGATION)
    shares = [one.mean / first.mean for one, first in zip(control["aTLAS"], control["base"], strict=True)]
    told = "share kept on test, by seed: " + ", ".join(f"{share:.3f}" for share in shares)
    report.claim("negation: the other tasks keep 95 % of the base's accuracy, every seed", min(shares) >= CONTROL, told)
    report.difference("few-shot: above the base", moved["aTLAS"], moved["base"], margin=TRANSFER)
    text = f"partitions: {GROUPS} groups per tensor are above one coefficient per tensor"
    report.difference(text, added["aTLAS, partitions"], ours, margin=PARTITIONS)
    chosen = compare(added["aTLAS, budget 1 by gradient"], added["aTLAS, budget 1 at random"])
    report.claim("budget 1: by gradient at least as good as at random (the mean)", chosen.difference >= 0, str(chosen))
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
