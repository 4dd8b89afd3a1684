"""Model Breadcrumbs: masks without the largest and the smallest changes; one setting holds as tasks are added.

Davari and Belilovsky 2023, Model Breadcrumbs, arXiv 2312.06795; here on text classifiers fine-tuned from one small
encoder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from consilience.bench.experiments import Options, Scores, State, Tuned, Workbench, compare, run
from consilience.bench.experiments.text import SMALL, TextFamily

SEEDS = (0, 1, 2)
ORDERS = (  # the order in which tasks are added, one per seed; settings are chosen on the first FIRST of each
    ("trec6", "banking77", "newsgroups14", "ag_news", "subjectivity", "sst2"),
    ("ag_news", "sst2", "trec6", "subjectivity", "banking77", "newsgroups14"),
    ("subjectivity", "newsgroups14", "sst2", "banking77", "trec6", "ag_news"),
)
FIRST = 2
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # within the authors' 0.01 to 1
PLAIN_ALPHAS = tuple(round(0.05 * step, 2) for step in range(1, 21))  # of task arithmetic: the same range, finer
BETAS = (0.05, 0.1, 0.15, 0.2)  # share kept, the authors' range
GAMMAS = (0.001, 0.006, 0.01)  # share of outliers removed, the authors' range


def frozen_settings(bench: Workbench, tasks: tuple[str, ...], options: Options) -> tuple[Tuned, Tuned]:
    """Choose the settings of breadcrumbs and of task arithmetic by dev accuracy on the first tasks."""
    grid = {"lambda_": ALPHAS, "density": options.pick(BETAS, BETAS[:1]), "gamma": options.pick(GAMMAS, GAMMAS[:1])}
    crumbs = bench.tune("breadcrumbs", grid, tasks=tasks)
    return crumbs, bench.tune("task_arithmetic", {"lambda_": PLAIN_ALPHAS}, tasks=tasks)


def curve(bench: Workbench, merge: Callable[..., State], order: tuple[str, ...]) -> list[Scores]:
    """Measure the merge of the first 2, 3, ... tasks on those tasks, each score over the expert's accuracy."""
    scores = []
    for count in range(FIRST, len(order) + 1):
        tasks = order[:count]
        scores.append(bench.relative(bench.scores(merge(tasks=tasks), tasks=tasks)))
    return scores


def main(options: Options) -> None:
    report = options.report("model-breadcrumbs", "Model Breadcrumbs", source="arXiv 2312.06795")
    family = TextFamily(cache=options.cache, **options.pick({}, SMALL))
    names = ("breadcrumbs", "task arithmetic", "random mask", "average")
    curves: dict[str, list[list[Scores]]] = {name: [] for name in names}
    chosen = []
    for number, bench in enumerate(options.workbenches(family, tasks=options.pick(ORDERS[0], ORDERS[0][:3]))):
        order = tuple(task for task in ORDERS[number % len(ORDERS)] if task in bench.tasks)
        tuned = frozen_settings(bench, order[:FIRST], options)
        crumbs, plain = (found.parameters for found in tuned)
        random = {"lambda_": crumbs["lambda_"], "density": crumbs["density"], "rescale": "none"}
        settings = {
            "breadcrumbs": ("breadcrumbs", crumbs),
            "task arithmetic": ("task_arithmetic", plain),
            "random mask": ("dare_linear", random),
            "average": ("linear", {}),
        }
        for name, (method, parameters) in settings.items():
            curves[name].append(curve(bench, partial(bench.merge, method, **parameters), order))
        values = [*crumbs.values(), plain["lambda_"], *(len(found.trials) for found in tuned)]
        chosen.append([bench.seed, ", ".join(order[:FIRST]), ", ".join(order[FIRST:]), *values])
    columns = ["seed", "tuned on", "then added", "alpha", "beta", "gamma", "alpha of task arithmetic", "trials", "its"]
    report.table(chosen, columns, "Settings chosen on dev of the first tasks and kept")
    counts = range(FIRST, FIRST + len(curves["breadcrumbs"][0]))
    rows = []
    for name, found in curves.items():
        values = [[part.mean for part in scores] for scores in found]
        rows += [[name, seed, *row] for seed, row in zip(options.seeds, values, strict=True)]
        rows.append([name, "mean", *(sum(column) / len(found) for column in zip(*values, strict=True))])
    report.table(rows, ["method", "seed", *(f"{count} tasks" for count in counts)], "Normalised test accuracy")
    last = {name: [scores[-1] for scores in found] for name, found in curves.items()}
    intervals = [[name, compare(scores), scores[0].n] for name, scores in last.items()]
    report.table(intervals, ["method", "mean and 95 % interval", "n"], f"At {counts[-1]} tasks")

    orders = f"{len(chosen)} orders of tasks"
    text = f"at {counts[-1]} tasks breadcrumbs is above task arithmetic, both with frozen settings, mean of {orders}"
    report.difference(text, last["breadcrumbs"], last["task arithmetic"], decide="mean")
    report.difference("the same beyond chance", last["breadcrumbs"], last["task arithmetic"])
    text = "breadcrumbs is above a random mask with the same share kept and the same alpha"
    report.difference(text, last["breadcrumbs"], last["random mask"])
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
