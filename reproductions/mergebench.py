"""MergeBench in small: experts of five domains, a dozen merging methods, performance, forgetting, time and memory.

He et al. 2025, MergeBench: A Benchmark for Merging Domain-Specialized LLMs, arXiv 2505.10833; here with text
classifiers from one small encoder. The suite is mergebench.yml beside this file.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from consilience.bench.experiments import Options, Report, State, Workbench, compare, run
from consilience.bench.experiments.merge_suite import MergeSuite
from consilience.bench.experiments.suite_run import Measured, SuiteRun
from consilience.bench.experiments.text import SMALL, TextFamily
from consilience.errors import DataError

SEEDS = (0,)
SUITE = Path(__file__).with_suffix(".yml")
AVERAGE = 1e-6  # largest difference of weights between task arithmetic at 1/T and the average
CHANCE = 0.10  # a merge with shuffled weights is this near to the score of guessing, mean over tests
REPEAT = 0.25  # CPU seconds of a merge, the shortest of five, measured twice


def without_grids(suite: MergeSuite) -> MergeSuite:
    methods = [replace(entry, grid={key: values[:2] for key, values in entry.grid.items()}) for entry in suite.methods]
    return replace(suite, methods=tuple(methods), examples=4)


def shuffled(state: State, seed: int) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: value.flatten()[torch.randperm(value.numel(), generator=draw)].view(value.shape)
        for name, value in state.items()
    }


def largest_difference(a: State, b: State) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def refuses_double_use() -> str:
    """Return what is said of a suite that validates on what it tests."""
    domains = {task: {"expert": task, "tests": [f"{task}@test"], "validation": [f"{task}@test"]} for task in "ab"}
    try:
        MergeSuite.of({"domains": domains, "methods": [{"method": "linear"}]})
    except DataError as error:
        return str(error)
    return ""


def row(found: Measured) -> list[object]:
    domains = [found.performance.by_task[key] for key in found.performance.by_example]
    settings = ", ".join(f"{key} {value}" for key, value in found.parameters.items())
    return [found.name, settings, *domains, compare(found.performance), found.forgetting.mean]


def costs(found: Measured) -> list[object]:
    assert found.cost is not None and found.again is not None
    peaks = [cost.peak_bytes for cost in (found.cost, found.again) if cost.peak_bytes is not None]
    peak = round(min(peaks) / 1e6) if peaks else None
    seconds = [min(found.cost.cpu), found.cost.seconds, found.statistics_seconds, found.validation_seconds]
    return [found.name, *seconds, found.trials, f"{found.validation_share:.0%}", peak, repeated(found)]


def repeated(found: Measured) -> float:
    """Return how far the two measurements of a merge's CPU time lie apart."""
    assert found.cost is not None and found.again is not None
    first, second = sorted((min(found.cost.cpu), min(found.again.cpu)))
    return second / first - 1


def one_seed(report: Report, suite: MergeSuite, bench: Workbench, repeats: int) -> None:
    ran = SuiteRun(suite, bench)
    references, methods = ran.references(), ran.methods(repeats=repeats)
    named = {found.name: found for found in (*references, *methods)}
    n = sum(len(scores) for scores in named["base"].performance.by_example.values())
    columns = ["model", "parameters", *suite.domains, "average, 95 % interval", "forgetting"]
    caption = f"Normalised performance (score over the domain expert's), seed {bench.seed}, n={n} test texts"
    report.table([row(found) for found in named.values()], columns, caption)
    tests = list(named["base"].accuracy)
    accuracy = [[found.name, *(found.accuracy[test] for test in tests)] for found in named.values()]
    report.table(accuracy, ["model", *tests], "Accuracy; the last three tests belong to no expert")
    columns = [
        "method",
        "merge CPU s",
        "wall s",
        "statistics s",
        "validation s",
        "trials",
        "share",
        "peak MB",
        "repeat",
    ]
    report.table(
        [costs(found) for found in methods], columns, "One merge: time, memory; share: of all time, validation"
    )
    for name, reason in ran.skipped.items():
        report.note(f"{name} was skipped: {reason}")

    own = {key: named[f"expert {domain.expert}"] for key, domain in suite.domains.items()}
    exact = all(abs(found.performance.by_task[key] - 1) < 1e-12 for key, found in own.items())
    report.claim("every expert has performance 1 on its own domain", exact, f"{len(own)} experts")
    kept = named["base"].forgetting.by_task
    report.claim("the base has forgetting 1", all(abs(value - 1) < 1e-12 for value in kept.values()), f"{kept}")
    uniform = bench.merge("task_arithmetic", weight=1 / len(bench.tasks))
    apart = largest_difference(uniform, bench.merge("linear"))
    report.claim("task arithmetic at 1/T is the average", apart <= AVERAGE, f"largest difference {apart:.1e}")
    broken = ran.measure(shuffled(named["average"].state, bench.seed), "shuffled", "control")
    scores = [broken.accuracy[f"{task}@test"] for task in suite.chance]
    guess = sum(suite.chance.values()) / len(suite.chance)
    near = sum(scores) / len(scores) - guess
    report.claim("shuffled weights score at chance", abs(near) <= CHANCE, f"{near:+.3f} from {guess:.3f}")
    tuned, plain = named["task arithmetic"].performance, named["average"].performance
    report.difference("tuned task arithmetic is not below the average", tuned, plain, margin=-1e-12, decide="mean")
    spread = max(repeated(found) for found in methods)
    report.claim(f"timings repeat within {REPEAT:.0%}", spread <= REPEAT, f"the largest difference is {spread:.0%}")
    many = max(methods, key=lambda found: found.performance.mean)
    joint = named["multi-task training"].performance
    report.difference(f"multi-task training is above the best merge on test ({many.name})", joint, many.performance)


def main(options: Options) -> None:
    report = options.report("mergebench", "MergeBench, small", source="arXiv 2505.10833")
    suite = MergeSuite.open(SUITE)
    family = TextFamily(cache=options.cache, **options.pick({}, SMALL))
    for bench in options.workbenches(family, tasks=suite.experts):
        one_seed(report, options.pick(suite, without_grids(suite)), bench, options.pick(5, 1))
    said = refuses_double_use()
    report.claim("a suite with a task in validation and test is refused", "one purpose" in said, said.splitlines()[-1])
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
