"""PCB-Merging: a coefficient per entry of each task vector, by its weight in the task and agreement with the others.

Du et al. 2024, Parameter Competition Balancing for Model Merging, arXiv 2410.02396; here on text classifiers
fine-tuned from one small encoder.
"""

from __future__ import annotations

import sys
from typing import Any

from consilience.bench.experiments import Options, Scores, Tuned, Workbench, run
from consilience.bench.experiments.text import SMALL, TextFamily

SEEDS = (0, 1, 2)
TASKS = ("trec6", "banking77", "newsgroups14", "ag_news", "subjectivity", "sst2")
RATIO = 0.1  # share of entries kept per task, the paper's for full fine-tuning
SCAN = tuple(round(0.8 + 0.1 * step, 1) for step in range(15))  # one lambda for all tasks: 0.8, 0.9, ..., 2.2
ALPHAS = tuple(round(0.05 * step, 2) for step in range(1, 16))  # as many trials for task arithmetic: 0.05, ..., 0.75
ABLATIONS = {"without intra": "inter", "without inter": "intra", "random scores": "random"}
LOSS = -0.005  # not below tuned task arithmetic by more than half a point
SEARCH = {"low": 0.8, "high": 1.3, "budget": 50}  # one lambda per task, from 1.0


def measure(bench: Workbench, trials: int, budget: int) -> tuple[dict[str, Scores], list[list[Any]], list[Any]]:
    """Return test scores by model, the choices made on dev, and the course of the search for one lambda per task."""
    tuned: dict[str, Tuned] = {
        "task arithmetic": bench.tune("task_arithmetic", {"lambda_": ALPHAS[:trials]}),
        "PCB": bench.tune("pcb", {"lambda_": SCAN[:trials]}, pcb_ratio=RATIO),
    }
    for name, score in ABLATIONS.items():
        tuned[name] = bench.tune("pcb", {"lambda_": SCAN[:trials]}, pcb_ratio=RATIO, score=score)
    start = dict.fromkeys(bench.tasks, 1.0)
    searched = bench.search("pcb", "lambda_", start, **{**SEARCH, "budget": budget}, pcb_ratio=RATIO)
    tuned["PCB, lambda per task"] = searched
    scores = {"base": bench.base_scores(), "experts": bench.expert_scores()}
    scores["average"] = bench.scores(bench.merge("linear"))
    scores |= {name: bench.scores(found.state) for name, found in tuned.items()}
    choices = []
    for name, value in scores.items():
        found = tuned.get(name)
        lambdas = "" if found is None else found.parameters["lambda_"]
        if isinstance(lambdas, dict):
            lambdas = " ".join(f"{part:.2f}" for part in lambdas.values())
        count, dev = (0, None) if found is None else (len(found.trials), found.score)
        choices.append([bench.seed, name, lambdas, count, dev, value.mean, value.n])
    course = [bench.seed, len(searched.trials), searched.trials[0].score, searched.score]
    return scores, choices, course


def main(options: Options) -> None:
    report = options.report("pcb-merging", "PCB-Merging", source="arXiv 2410.02396")
    family = TextFamily(cache=options.cache, **options.pick({}, SMALL))
    found: dict[str, list[Scores]] = {}
    table, courses = [], []
    for bench in options.workbenches(family, tasks=options.pick(TASKS, TASKS[:4])):
        scores, choices, course = measure(bench, *options.pick((len(SCAN), SEARCH["budget"]), (2, 3)))
        table += choices
        courses.append(course)
        for name, value in scores.items():
            found.setdefault(name, []).append(value)
    columns = ["seed", "model", "lambda", "trials", "dev", "test", "n"]
    report.table(table, columns, "Mean accuracy over tasks; lambda chosen on dev, the first best of the trials")
    names = list(found["base"][0].by_task)
    rows = [
        [name, *(sum(scores.by_task[task] for scores in values) / len(values) for task in names)]
        for name, values in found.items()
    ]
    report.table(rows, ["model", *names], "Test accuracy by task, mean of the seeds")
    report.table(courses, ["seed", "evaluations", "dev at the start", "dev at the end"], "Search for lambda per task")

    pcb, plain = found["PCB"], found["task arithmetic"]
    report.difference("PCB is above the uniform average", pcb, found["average"])
    text = f"PCB is not below task arithmetic by more than half a point, {len(SCAN)} trials each"
    report.difference(text, pcb, plain, margin=LOSS)
    report.difference("PCB is above random scores with the same density", pcb, found["random scores"])
    for name in list(ABLATIONS)[:2]:
        report.difference(f"PCB is above PCB {name}", pcb, found[name])
    worse = [course for course in courses if course[-1] < course[-2]]
    text = f"the search for lambda per task, {courses[0][1]} evaluations, never ends below its start"
    report.claim(text, not worse, f"{len(courses) - len(worse)} of {len(courses)} seeds")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
